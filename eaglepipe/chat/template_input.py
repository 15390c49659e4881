"""Messages in the form that one template reads: its name for thoughts, and calls as it writes them."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes

from eaglepipe.chat.limited_rendering import render_limited
from eaglepipe.chat.messages import Message
from eaglepipe.errors import TemplateError

TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,  # of filters, about their arguments
    RecursionError,
    SyntaxError,  # of the code that jinja makes of deeply nested blocks
)

THOUGHT_NAMES = ("reasoning_content", "thinking", "reasoning")  # under which templates read thoughts
_GENERATION_TAGS = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_SOME = "some text"  # content forms of a call: text, or one of three spellings of none
_ABSENT = "absent"
_CONTENTS: tuple[str | None, ...] = ("", None, _ABSENT)
_PROBE_NAME = "probe_of_calls"
_ARGUMENT = "of arguments"
_PROBE_ARGUMENTS = {"probe": _ARGUMENT}
_CALL = re.compile(f"{_PROBE_NAME}|{_ARGUMENT}")
_WRITTEN = re.compile(rf"""\{{\s*"probe"\s*:\s*"{_ARGUMENT}"\s*\}}""")
_PRINTED = re.compile(rf"""'probe'\s*:\s*'{_ARGUMENT}'""")  # by Python, not as JSON


def fitted(messages: Sequence[Message], source: str) -> list[Message]:
    """Return messages as the template `source` reads them.

    Raises:
        TemplateError: the template leaves out the tool calls that a message has.
    """
    return [_with_named_thought(_with_calls(message, source), source) for message in messages]


@lru_cache(maxsize=16)
def takes_text(source: str) -> bool:
    """Return whether a template writes the arguments of calls as they are, and so needs them as JSON text.

    Most templates pass an object through `tojson`, or read its entries; some of those write a text, too, but as
    another argument.
    """
    as_objects, as_texts = ([_probe(source, text, content) or "" for content in _CONTENTS] for text in (False, True))
    reads_objects = any(_ARGUMENT in written and not _PRINTED.search(written) for written in as_objects)
    return not reads_objects and any(_WRITTEN.search(written) for written in as_texts)


@lru_cache(maxsize=16)
def thought_names(source: str) -> tuple[str, ...]:
    """Return the names of thoughts that a template reads."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_GENERATION_TAGS.sub("", source))
    except (jinja2.TemplateSyntaxError, RecursionError):
        return ()
    read: set[Any] = {node.attr for node in tree.find_all(nodes.Getattr)}
    read |= {node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
    read |= {node.expr.value for node in tree.find_all(nodes.Compare) if isinstance(node.expr, nodes.Const)}
    gets = (call for call in tree.find_all(nodes.Call) if getattr(call.node, "attr", None) == "get")
    read |= {key.value for call in gets for key in call.args[:1] if isinstance(key, nodes.Const)}
    return tuple(name for name in THOUGHT_NAMES if name in read)


def _with_calls(message: Message, source: str) -> Message:
    if not message.get("tool_calls"):
        return message
    message = _with_content(message, source)
    if not takes_text(source):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    texts = [{**function, "arguments": _as_text(function["arguments"])} for function in functions]
    calls = [{**call, "function": text} for call, text in zip(message["tool_calls"], texts, strict=True)]
    return {**message, "tool_calls": calls}


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _with_content(message: Message, source: str) -> Message:
    """Give a call without content the spelling of none that adds least to the text of the call.

    Raises:
        TemplateError: the template writes such a message and leaves the call out.
    """
    own = _SOME if message.get("content") else message.get("content", _ABSENT)
    spellings = (own,) if own == _SOME else (own, *(content for content in _CONTENTS if content != own))
    texts = {content: _probe(source, takes_text(source), content) for content in spellings}
    written = {content: len(text) for content, text in texts.items() if text is not None and _CALL.search(text)}
    if not written and any(text is not None for text in texts.values()):
        raise TemplateError("the chat template leaves out the tool calls of a message, so its text would lack them")
    best = min(written, key=written.__getitem__, default=own)  # the row's own spelling, if no other is shorter
    if best == own:
        return message
    others = {key: value for key, value in message.items() if key != "content"}
    return others if best == _ABSENT else {**others, "content": best}


def _with_named_thought(message: Message, source: str) -> Message:
    """Give a thought under the template's name for it, if the template knows none that the message has."""
    has = [name for name in THOUGHT_NAMES if message.get(name) and isinstance(message[name], str)]
    names = thought_names(source) if has else ()
    if not names or any(name in names for name in has):
        return message
    return {**message, names[0]: message[has[0]]}


@lru_cache(maxsize=128)
def _probe(source: str, text: bool, content: str | None) -> str | None:
    """Return the rendering of a call with its arguments as text or object, or None if the template refuses it."""
    arguments = json.dumps(_PROBE_ARGUMENTS) if text else _PROBE_ARGUMENTS
    call = {"id": "callprobe", "type": "function", "function": {"name": _PROBE_NAME, "arguments": arguments}}
    calling = {"role": "assistant", **({} if content == _ABSENT else {"content": content}), "tool_calls": [call]}
    asked: list[Message] = [{"role": "user", "content": "a"}, calling]
    answer: list[Message] = [
        {"role": "tool", "tool_call_id": "callprobe", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    tool = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    attempts = [(messages, tools) for tools in (None, [tool]) for messages in (asked + answer, asked)]
    rendered = [_rendered(source, messages, tools) for messages, tools in attempts]
    accepted = [written for written in rendered if written is not None]
    return next((written for written in accepted if _CALL.search(written)), accepted[0] if accepted else None)


def _rendered(source: str, messages: list[Message], tools: list[dict[str, Any]] | None) -> str | None:
    try:
        return render_limited(source, messages, tools, variables={"bos_token": "", "eos_token": ""})[0]
    except TEMPLATE_FAULTS:
        return None
