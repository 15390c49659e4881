"""Chat templates that behave like published ones, and conversations with each turn's prompt and answer by hand."""

import json
from dataclasses import dataclass, field
from typing import Any

TOOL = {"type": "function", "function": {"name": "get_rain", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "id": "abc123def", "function": {"name": "get_rain", "arguments": {"city": "Oslo"}}}
_TOOL_JSON = json.dumps(TOOL)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """A template, the source's conversation, and the turns as (prompt, answer); `rows` groups turns by output row."""

    template: str
    eos: str
    messages: tuple[dict[str, Any], ...]
    turns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[int, ...], ...]
    tools: tuple[dict[str, Any], ...] = ()
    variables: dict[str, Any] = field(default_factory=dict)
    other_ends: tuple[str, ...] = ()
    ended_early: str | None = None


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str = "not said by the target", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def result(text: str, role: str = "tool") -> dict[str, Any]:
    return {"role": role, "content": text, "tool_call_id": "abc123def"}


LLAMA = """{{- bos_token }}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{- 'Environment: ipython\n' }}{%- endif %}{{- 'Today Date: ' + date_string + '\n\n' }}
{%- for m in messages if m.role == 'system' %}{{- m.content | trim }}{%- endfor %}{{- '<|eot_id|>' }}
{%- for m in messages if m.role != 'system' %}
  {%- if m.tool_calls %}{%- if m.tool_calls | length != 1 %}{{- raise_exception('one call') }}{%- endif %}
    {%- set call = m.tool_calls[0].function %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
    {{- call.arguments | tojson }}{{- '}<|eom_id|>' }}
  {%- elif m.role in ('tool', 'ipython') %}
    {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}
  {%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
  {%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""
_LLAMA_HEAD = (
    "<|begin|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nToday Date: 02 Mar 2024\n\nBe brief."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nRain in Oslo?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_LLAMA_CALL = '{"name": "get_rain", "parameters": {"city": "Oslo"}}<|eom_id|>'
_LLAMA_RESULT = (
    "<|start_header_id|>ipython<|end_header_id|>\n\n9 mm<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)

QWEN = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- if tools %}{{- '<|im_start|>system\n' + tools[0] | tojson + '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}
  {%- if m.role == 'assistant' %}
    {%- set content = m.content %}{%- set thought = '' %}
    {%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
    {%- elif '</think>' in content %}
      {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\n' }}
    {%- if loop.index0 > ns.last and (loop.last or thought) %}
      {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
    {%- else %}{{- content }}{%- endif %}
    {%- for call in m.tool_calls or [] %}
      {%- if (loop.first and content) or not loop.first %}{{- '\n' }}{%- endif %}
      {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
      {%- if call.function.arguments is string %}{{- call.function.arguments }}
      {%- else %}{{- call.function.arguments | tojson }}{%- endif %}{{- '}\n</tool_call>' }}
    {%- endfor %}{{- '<|im_end|>\n' }}
  {%- elif m.role == 'tool' %}
    {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
  {%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
  {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
_QWEN_ASKED = "<|im_start|>user\nWhere do willows grow?<|im_end|>\n<|im_start|>assistant\n"
_QWEN_TOOL = f"<|im_start|>system\n{_TOOL_JSON}<|im_end|>\n<|im_start|>user\nIs it wet there?<|im_end|>\n"
_QWEN_CALL = (
    '<think>\nI must look.\n</think>\n\n<tool_call>\n{"name": "get_rain", "arguments": {"city": "Oslo"}}\n</tool_call>'
    "<|im_end|>"
)

GEMMA = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{%- set first = messages[0].content + '\n\n' %}{%- set rest = messages[1:] %}
{%- else %}{%- set first = '' %}{%- set rest = messages %}{%- endif %}
{%- for m in rest %}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
  {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}
  {{- m.content | trim }}{{- '<end_of_turn>\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""
_GEMMA_1 = "<|begin|><start_of_turn>user\nBe kind.\n\nName a tree.<end_of_turn>\n<start_of_turn>model\n"
_GEMMA_2 = f"{_GEMMA_1}An elm.<end_of_turn>\n<start_of_turn>user\nOne more?<end_of_turn>\n<start_of_turn>model\n"

MISTRAL = """{{- bos_token }}
{%- set ns = namespace(at=0) %}
{%- for m in messages if m.role in ('user', 'assistant') and not m.tool_calls %}
  {%- if (m.role == 'user') != (ns.at % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
  {%- set ns.at = ns.at + 1 %}
{%- endfor %}
{%- for m in messages %}
  {%- if m.role == 'user' %}
    {%- if tools %}{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
    {{- '[INST] ' + m.content + '[/INST]' }}
  {%- elif m.tool_calls %}
    {{- '[TOOL_CALLS] [' }}
    {%- for call in m.tool_calls %}
      {%- if call.id is not defined or call.id | length != 9 %}
        {{- raise_exception('ids have 9 characters') }}{%- endif %}
      {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{{- ', ' if not loop.last else '' }}
    {%- endfor %}{{- ']' + eos_token }}
  {%- elif m.role == 'tool' %}
    {{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
  {%- else %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}
{%- endfor %}"""
_MISTRAL_1 = f"<|begin|>[AVAILABLE_TOOLS] [{_TOOL_JSON}][/AVAILABLE_TOOLS][INST] How wet is it?[/INST]"
_MISTRAL_CALL = '[TOOL_CALLS] [{"name": "get_rain", "arguments": {"city": "Oslo"}, "id": "xyz987uvw"}]</s>'
_MISTRAL_RESULT = '[TOOL_RESULTS] {"content": 9, "call_id": "xyz987uvw"}[/TOOL_RESULTS]'
_MISTRAL_2 = "<|begin|>[INST] Name a pine.[/INST] A Scots pine.</s>[INST] Is it tall?[/INST]"

HARMONY = """{%- set ns = namespace(final=false) %}
{%- for m in messages %}
  {%- if m.role == 'user' %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}
  {%- elif m.role == 'tool' %}
    {{- '<|start|>functions.get_rain to=assistant<|channel|>commentary<|message|>' + m.content | tojson + '<|end|>' }}
  {%- elif m.tool_calls %}
    {%- set call = m.tool_calls[0].function %}{%- set ns.final = false %}
    {%- for later in messages[loop.index:] if later.role == 'assistant' and not later.tool_calls %}
      {%- set ns.final = true %}{%- endfor %}
    {%- if m.thinking and not ns.final %}
      {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}
    {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary ' }}
    {{- (call.content_type or 'json') + '<|message|>' + call.arguments | tojson + '<|call|>' }}
  {%- elif loop.last and not add_generation_prompt %}
    {%- if m.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}
    {{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
  {%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
_HARMONY_1 = "<|start|>user<|message|>Oak or ash?<|end|><|start|>assistant"
_HARMONY_2 = (
    f"{_HARMONY_1}<|channel|>final<|message|>An oak.<|end|><|start|>user<|message|>Rain today?<|end|><|start|>assistant"
)
_HARMONY_THOUGHT = "<|channel|>analysis<|message|>Ask the tool.<|end|>"
_HARMONY_CALL = '<|start|>assistant to=functions.get_rain<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>'
_HARMONY_RESULT = '<|start|>functions.get_rain to=assistant<|channel|>commentary<|message|>"4"<|end|><|start|>assistant'

DEEPSEEK = """{{- bos_token }}
{%- for m in messages %}
  {%- if m.role == 'user' %}{{- '<User>' + m.content }}
  {%- else %}{%- set content = m.content %}
    {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
    {{- '<Assistant>' + content + '<eos>' }}
  {%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<Assistant><think>\n' }}{%- endif %}"""
_DEEPSEEK_2 = "<|begin|><User>What is a fir?<Assistant>\n\nA conifer.<eos><User>And a birch?<Assistant><think>\n"

BEHAVIOURS: dict[str, Behaviour] = {
    "llama-3.1": Behaviour(
        template=LLAMA,
        eos="<|eot_id|>",
        other_ends=("<|eom_id|>",),
        variables={"date_string": "02 Mar 2024"},
        tools=(TOOL,),
        messages=(
            {"role": "system", "content": "Be brief."},
            user("Rain in Oslo?"),
            assistant("", tool_calls=[CALL]),
            result("9 mm", "ipython"),
            assistant(),
        ),
        turns=((_LLAMA_HEAD, _LLAMA_CALL), (_LLAMA_HEAD + _LLAMA_CALL + _LLAMA_RESULT, "Much rain.<|eot_id|>")),
        rows=((0, 1),),
    ),
    "qwen3": Behaviour(
        template=QWEN,
        eos="<|im_end|>",
        messages=(user("Where do willows grow?"), assistant(), user("And pines?"), assistant()),
        turns=(
            (_QWEN_ASKED, "<think>\nThey like water.\n</think>\n\nBy rivers.<|im_end|>"),
            (
                f"{_QWEN_ASKED}By rivers.<|im_end|>\n<|im_start|>user\nAnd pines?<|im_end|>\n<|im_start|>assistant\n",
                "<think>\nPines like hills.\n</think>\n\nOn hills.<|im_end|>",
            ),
        ),
        rows=((0,), (1,)),
    ),
    "qwen3-tools": Behaviour(
        template=QWEN,
        eos="<|im_end|>",
        tools=(TOOL,),
        messages=(user("Is it wet there?"), assistant("", tool_calls=[CALL]), result("2 mm"), assistant()),
        turns=(
            (f"{_QWEN_TOOL}<|im_start|>assistant\n", _QWEN_CALL),
            (
                f"{_QWEN_TOOL}<|im_start|>assistant\n{_QWEN_CALL}\n"
                "<|im_start|>user\n<tool_response>\n2 mm\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
                "<think>\nNot much.\n</think>\n\nHardly.<|im_end|>",
            ),
        ),
        rows=((0, 1),),
    ),
    "qwen3-without-thoughts": Behaviour(
        template=QWEN,
        eos="<|im_end|>",
        variables={"enable_thinking": False},
        messages=(user("Where do willows grow?"), assistant(), user("And limes?"), assistant()),
        turns=(
            (f"{_QWEN_ASKED}<think>\n\n</think>\n\n", "Near water.<|im_end|>"),
            (
                f"{_QWEN_ASKED}Near water.<|im_end|>\n<|im_start|>user\nAnd limes?<|im_end|>\n<|im_start|>assistant\n"
                "<think>\n\n</think>\n\n",
                "In towns.<|im_end|>",
            ),
        ),
        rows=((0,), (1,)),
    ),
    "gemma-3": Behaviour(
        template=GEMMA,
        eos="<end_of_turn>",
        messages=(
            {"role": "system", "content": "Be kind."},
            user("Name a tree."),
            assistant(),
            user("One more?"),
            assistant(),
            user("The last?"),
            assistant(),
        ),
        turns=(
            (_GEMMA_1, "An elm. \n<end_of_turn>"),  # the template trims it
            (_GEMMA_2, "An ash.<end_of_turn>"),
            (
                f"{_GEMMA_2}An ash.<end_of_turn>\n<start_of_turn>user\nThe last?<end_of_turn>\n<start_of_turn>model\n",
                "A yew.<end_of_turn>",
            ),
        ),
        rows=((0,), (1, 2)),
    ),
    "mistral": Behaviour(
        template=MISTRAL,
        eos="</s>",
        messages=(user("Name a pine."), assistant(), user("Is it tall?"), assistant()),
        turns=(
            ("<|begin|>[INST] Name a pine.[/INST]", " A Scots pine.</s>"),
            (_MISTRAL_2, " Very tall.</s>"),
        ),
        rows=((0, 1),),
    ),
    "mistral-tools": Behaviour(
        template=MISTRAL,
        eos="</s>",
        tools=(TOOL,),
        messages=(user("How wet is it?"), assistant("", tool_calls=[CALL]), result("9"), assistant()),
        turns=((_MISTRAL_1, _MISTRAL_CALL), (_MISTRAL_1 + _MISTRAL_CALL + _MISTRAL_RESULT, " Quite wet.</s>")),
        rows=((0, 1),),
    ),
    "gpt-oss": Behaviour(
        template=HARMONY,
        eos="<|return|>",
        other_ends=("<|call|>",),
        tools=(TOOL,),
        messages=(
            user("Oak or ash?"),
            assistant(),
            user("Rain today?"),
            assistant("", tool_calls=[CALL]),
            result("4"),
            assistant(),
        ),
        turns=(
            (
                _HARMONY_1,
                "<|channel|>analysis<|message|>Oaks last.<|end|><|start|>assistant<|channel|>final<|message|>An oak."
                "<|return|>",
            ),
            (_HARMONY_2, _HARMONY_THOUGHT + _HARMONY_CALL),
            (
                _HARMONY_2 + _HARMONY_THOUGHT + _HARMONY_CALL + _HARMONY_RESULT,
                "<|channel|>analysis<|message|>Four.<|end|><|start|>assistant<|channel|>final<|message|>Some.<|return|>",
            ),
        ),
        rows=((0,), (1, 2)),
    ),
    "gpt-oss-other-call": Behaviour(  # the channel first: the template cannot show it so
        template=HARMONY,
        eos="<|return|>",
        other_ends=("<|call|>",),
        tools=(TOOL,),
        messages=(user("Snow?"), assistant("", tool_calls=[CALL]), result("4"), assistant()),
        turns=(
            (
                "<|start|>user<|message|>Snow?<|end|><|start|>assistant",
                '<|channel|>commentary to=functions.get_rain json<|message|>{"city": "Oslo"}<|call|>',
            ),
        ),
        rows=((0,),),
        ended_early="the template does not show the answer as the target wrote it",
    ),
    "deepseek-r1": Behaviour(
        template=DEEPSEEK,
        eos="<eos>",
        messages=(user("What is a fir?"), assistant(), user("And a birch?"), assistant()),
        turns=(
            ("<|begin|><User>What is a fir?<Assistant><think>\n", "It has cones.\n</think>\n\nA conifer.<eos>"),
            (_DEEPSEEK_2, "Its bark is white.\n</think>\n\nA tree with white bark.<eos>"),
        ),
        rows=((0,), (1,)),
    ),
}
SPECIAL = (
    *("<|pad|>", "<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "</s>"),
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
    *("<User>", "<Assistant>", "<eos>"),
)
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # kept when special tokens are skipped
