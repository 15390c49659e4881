"""Tool calls in the spellings that targets write them in."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_HERMES = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_NAMED = re.compile(r"\[TOOL_CALLS\]\s*([\w.-]+)(?:\[CALL_ID\](\w+))?\[ARGS\](.*?)(?=\[TOOL_CALLS\]|\Z)", re.DOTALL)
_CALLS_BEGIN, _CALL_BEGIN, _SEP, _CALL_END = (  # of DeepSeek
    f"<\N{FULLWIDTH VERTICAL LINE}tool▁{name}\N{FULLWIDTH VERTICAL LINE}>"
    for name in ("calls▁begin", "call▁begin", "sep", "call▁end")
)
_DEEPSEEK = re.compile(
    rf"{_CALL_BEGIN}(?:function{_SEP}([^\n<]+)\n```json\n(.*?)\n```|([^\n<]+){_SEP}(.*?)){_CALL_END}", re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class WrittenCall:
    """A call of a tool: the arguments as an object, and as the text that the target wrote."""

    name: str
    arguments: dict[str, Any]
    text: str
    call_id: str | None = None
    content_type: str | None = None

    def message(self, call_id: str | None, *, as_text: bool) -> dict[str, Any]:
        """Return the call as an entry of a message's `tool_calls`."""
        function: dict[str, Any] = {"name": self.name, "arguments": self.text if as_text else self.arguments}
        if self.content_type is not None:
            function["content_type"] = self.content_type
        name = self.call_id or call_id
        return {"type": "function", "function": function, **({} if name is None else {"id": name})}


def find_calls(text: str, *, bare: bool) -> tuple[str, tuple[WrittenCall, ...]] | None:
    """Return the text before the calls that end an answer, and the calls; None if it holds none that can be read.

    Args:
        bare: whether an answer that is one JSON object with a name and parameters is a call.
    """
    for start, calls in _spellings(text, bare=bare):
        if calls:
            return text[:start], calls
    return None


def read_call(name: str, text: str, **fields: Any) -> WrittenCall | None:
    """Return a call from its name and its arguments' JSON; None if they are no JSON object."""
    arguments = load_json(text)
    if not name.strip() or not isinstance(arguments, dict):
        return None
    return WrittenCall(name=name.strip(), arguments=arguments, text=text.strip(), **fields)


def load_json(text: str) -> Any:
    """Return the value of a JSON text; None if it is none, or one that cannot be stored."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _spellings(text: str, *, bare: bool) -> Iterator[tuple[int, tuple[WrittenCall, ...]]]:
    """Yield where the calls begin and the calls, for each spelling."""
    if matches := list(_HERMES.finditer(text)):
        yield matches[0].start(), _all(_from_object(match[1]) for match in matches)
    if "[TOOL_CALLS]" in text:
        start = text.index("[TOOL_CALLS]")
        named = [read_call(match[1], match[3], call_id=match[2]) for match in _NAMED.finditer(text)]
        yield start, _all(iter(named)) or _from_list(text[start + len("[TOOL_CALLS]") :])
    if matches := list(_DEEPSEEK.finditer(text)):
        start = text.find(_CALLS_BEGIN)
        calls = (read_call(match[1] or match[3], match[2] or match[4] or "") for match in matches)
        yield matches[0].start() if start < 0 else start, _all(calls)
    if bare and (call := _from_object(text.strip().removeprefix("<|python_tag|>"))) is not None:
        yield 0, (call,)


def _all(calls: Iterator[WrittenCall | None]) -> tuple[WrittenCall, ...]:
    """Return the calls if each could be read."""
    read = tuple(calls)
    sound = tuple(call for call in read if call is not None)
    return sound if len(sound) == len(read) else ()


def _from_list(text: str) -> tuple[WrittenCall, ...]:
    entries = load_json(text)
    if not isinstance(entries, list):
        return ()
    return _all(_from_object(json.dumps(entry, ensure_ascii=False)) for entry in entries)


def _from_object(text: str) -> WrittenCall | None:
    value = load_json(text)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    key = "arguments" if "arguments" in value else "parameters"
    match = re.search(rf'"{key}"\s*:\s*', text)
    if match is None:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text, match.end())
    except ValueError:
        return None
    call_id = value.get("id")
    return read_call(value["name"], text[match.end() : end], call_id=call_id if isinstance(call_id, str) else None)
