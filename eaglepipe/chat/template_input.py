"""Messages in the form that one template reads: its name for thoughts, and arguments of calls as object or as text."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from transformers.utils.chat_template_utils import render_jinja_template

from eaglepipe.chat.messages import Message

TEMPLATE_FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError)

_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names that templates have for them
_GENERATION_TAGS = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_PROBE_ARGUMENTS = {"probe": "of arguments"}
_WRITTEN = re.compile(r"""\{\s*"probe"\s*:\s*"of arguments"\s*\}""")


def fitted(messages: Sequence[Message], source: str) -> list[Message]:
    """Return messages as the template `source` reads them."""
    return [_with_named_thought(_with_arguments(message, source), source) for message in messages]


@lru_cache(maxsize=16)
def takes_text(source: str) -> bool:
    """Return whether a template writes the arguments of calls as they are, and so needs them as JSON text.

    Most templates pass them through `tojson`, or read their entries.
    """
    return not _writes(source, _PROBE_ARGUMENTS) and _writes(source, json.dumps(_PROBE_ARGUMENTS))


@lru_cache(maxsize=16)
def thought_names(source: str) -> tuple[str, ...]:
    """Return the names of thoughts that a template reads."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_GENERATION_TAGS.sub("", source))
    except jinja2.TemplateSyntaxError:
        return ()
    read: set[Any] = {node.attr for node in tree.find_all(nodes.Getattr)}
    read |= {node.arg.value for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
    read |= {node.expr.value for node in tree.find_all(nodes.Compare) if isinstance(node.expr, nodes.Const)}
    gets = (call for call in tree.find_all(nodes.Call) if getattr(call.node, "attr", None) == "get")
    read |= {key.value for call in gets for key in call.args[:1] if isinstance(key, nodes.Const)}
    return tuple(name for name in _THOUGHTS if name in read)


def _with_arguments(message: Message, source: str) -> Message:
    calls = message.get("tool_calls")
    if not calls or not takes_text(source):
        return message
    arguments = [call["function"]["arguments"] for call in calls]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in arguments]
    functions = [{**call["function"], "arguments": text} for call, text in zip(calls, texts, strict=True)]
    written = [{**call, "function": function} for call, function in zip(calls, functions, strict=True)]
    return {**message, "tool_calls": written}


def _with_named_thought(message: Message, source: str) -> Message:
    """Give a thought under the template's name for it, if the template knows none that the message has."""
    has = [name for name in _THOUGHTS if message.get(name) and isinstance(message[name], str)]
    names = thought_names(source) if has else ()
    if not names or any(name in names for name in has):
        return message
    return {**message, names[0]: message[has[0]]}


def _writes(source: str, arguments: Any) -> bool:
    """Return whether a rendering of a call holds its arguments as JSON."""
    function = {"name": "probe", "arguments": arguments}
    call = {"id": "callprobe", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "callprobe", "name": "probe", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    try:
        texts, _ = render_jinja_template(conversations=[messages], chat_template=source, bos_token="", eos_token="")
    except TEMPLATE_FAULTS:
        return False
    return bool(_WRITTEN.search(texts[0]))
