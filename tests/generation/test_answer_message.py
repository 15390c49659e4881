"""An answer is fed back only by a message that the template shows as the target wrote it."""

import json
from typing import Any

import pytest

from eaglepipe.chat.messages import Message
from eaglepipe.generation.answer_message import AnswerMessage, AnswerText, read_answer
from tests.chat.tiny_chat import CHATML, make_chat

ASKED: list[Message] = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n"


def chatml(body: str, opened: str = "") -> str:
    """ChatML whose assistant messages are written by the expression `body`, and whose prompt opens a thought."""
    template = CHATML.replace("message['content'] +", f"(({body}) if m.role == 'assistant' else m.content) +")
    return template.replace("message in", "m in").replace("message[", "m[").replace(_OPEN, _OPEN + opened)


def read(template: str, body: str, *, tools: bool = False, end: str = "<|im_end|>") -> AnswerMessage:
    chat = make_chat(template)
    prompt = chat.template.render(ASKED, TOOLS if tools else None, prompt=True)
    answer = AnswerText(prompt=prompt, body=body, end=end)
    return read_answer(chat, ASKED, TOOLS if tools else None, answer)


THOUGHTS = {
    "content alone": (chatml("m.content"), "<think>\na\n</think>\n\nb", {"content": "<think>\na\n</think>\n\nb"}),
    "opened by the prompt": (
        chatml("'<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' + m.content", "<think>\\n"),
        "a\n</think>\n\nb",
        {"reasoning_content": "a", "content": "b"},
    ),
    "without line feeds": (
        chatml("('[THINK]' + m.thinking + '[/THINK]' if m.thinking else '') + m.content"),
        "[THINK] a[/THINK] b",
        {"reasoning_content": " a", "content": " b"},
    ),
    "line feeds of its own": (
        chatml("'<think>' + (m.reasoning_content or '') + '</think>' + m.content", "<think>"),
        "\na\n\n</think>\nb",
        {"reasoning_content": "\na\n\n", "content": "\nb"},
    ),
    "dropped": (chatml("m.content.split('</think>')[-1]", "<think>\\n"), "a\n</think>\n\nb", {"content": "\n\nb"}),
    "trimmed": (chatml("m.content | trim"), " b \n", {"content": " b \n"}),
    "another end": (chatml("m.content"), "b", {"content": "b"}),
}


@pytest.mark.parametrize("name", list(THOUGHTS))
def test_thoughts_and_text_become_what_the_template_shows(name: str) -> None:
    template, body, expected = THOUGHTS[name]
    answer = read(template, body, end="<|endoftext|>" if name == "another end" else "<|im_end|>")
    shown = {key: answer.message[key] for key in expected}
    assert answer.shown and shown == expected


_BEGIN, _SEP, _END = (
    f"<\N{FULLWIDTH VERTICAL LINE}tool▁{name}\N{FULLWIDTH VERTICAL LINE}>" for name in ("call▁begin", "sep", "call▁end")
)
CALLS = {
    "hermes": (
        "'<tool_call>' ~ (c.function | tojson) ~ '</tool_call>'",
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
    ),
    "bare": (
        '\'{"name": "add", "parameters": \' ~ (c.function.arguments | tojson) ~ \'}\'',
        '{"name": "add", "parameters": {"a": 1}}',
    ),
    "list": ("'[TOOL_CALLS][' ~ (c.function | tojson) ~ ']'", '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]'),
    "named": (
        "'[TOOL_CALLS]' ~ c.function.name ~ '[ARGS]' ~ (c.function.arguments | tojson)",
        '[TOOL_CALLS]add[ARGS]{"a": 1}',
    ),
    "as text": ("'[TOOL_CALLS]' ~ c.function.name ~ '[ARGS]' ~ c.function.arguments", '[TOOL_CALLS]add[ARGS]{"a":  1}'),
    "fenced": (
        f"'{_BEGIN}function{_SEP}' ~ c.function.name ~ '\\n```json\\n' ~ c.function.arguments ~ '\\n```{_END}'",
        f'{_BEGIN}function{_SEP}add\n```json\n{{"a":1}}\n```{_END}',
    ),
    "separated": (
        f"'{_BEGIN}' ~ c.function.name ~ '{_SEP}' ~ c.function.arguments ~ '{_END}'",
        f'{_BEGIN}add{_SEP}{{"a":1}}{_END}',
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_calls_are_read_in_each_spelling(name: str) -> None:
    expression, body = CALLS[name]
    one = expression.replace("c.function", "m.tool_calls[0].function")
    answer = read(chatml(f"({one}) if m.tool_calls else m.content"), body, tools=True)
    (call,) = answer.message["tool_calls"]
    arguments = call["function"]["arguments"]
    assert answer.shown and call["function"]["name"] == "add"
    assert (json.loads(arguments) if isinstance(arguments, str) else arguments) == {"a": 1}


@pytest.mark.parametrize(
    ("template", "body"),
    [
        (chatml("m.content | upper"), "b"),
        (chatml("m.content | replace('x', 'y')"), "an axe"),
        (chatml("'<think>other</think>' + m.content.split('</think>')[-1]"), "<think>a</think>b"),
        (chatml("raise_exception('no')"), "b"),
        (chatml("m.content.split('</think>')[-1]", "<think>\\n"), "a\n</think>\n\n"),
    ],
)
def test_an_answer_that_the_template_shows_differently_is_not_fed_back(template: str, body: str) -> None:
    answer = read(template, body)
    assert not answer.shown and answer.message["role"] == "assistant"


@pytest.mark.parametrize(
    "arguments", ['{"a": NaN}', '{"a": "\\ud800"}', "[1]", '{"a": 1', "[" * 3000 + "]" * 3000, '{"a": 1e999}']
)
def test_arguments_that_cannot_be_stored_stay_text(arguments: str) -> None:
    body = f'<tool_call>{{"name": "add", "arguments": {arguments}}}</tool_call>'
    answer = read(chatml("m.content"), body, tools=True)
    assert answer.shown and answer.message == {"role": "assistant", "content": body}


def test_the_reading_of_the_tokenizer_comes_first() -> None:
    chat = make_chat(chatml("'<<' + m.thinking + '>>' + m.content"))
    fields: dict[str, Any] = {"thinking": {"open": "<<", "close": ">>"}, "content": {"close": "<|im_end|>"}}
    anchor = "<|im_start|>assistant\n"
    chat.tokenizer.response_template = {"start_anchor": anchor, "fields": fields}
    prompt = chat.template.render(ASKED, prompt=True)
    answer = read_answer(chat, ASKED, None, AnswerText(prompt=prompt, body="<<a>>b", end="<|im_end|>"))
    assert answer.shown and answer.message == {"role": "assistant", "thinking": "a", "content": "b"}
