"""The results of tools between two assistant turns of a source, when the target has written the first turn anew."""

from collections.abc import Mapping, Sequence
from typing import Any

from eaglepipe.chat.messages import Message
from eaglepipe.generation.written_calls import load_json

TOOL_ROLES = ("tool", "function", "ipython")


def call_ids(message: Message | None) -> list[str]:
    """Return the ids of the calls of a source's assistant message, up to the first call without one."""
    ids: list[str] = []
    for call in _calls(message):
        if not isinstance(call.get("id"), str):
            break
        ids.append(call["id"])
    return ids


def results_fault(source: Message, answer: Message, following: Sequence[Message]) -> str | None:
    """Return the reason that the messages after a source's turn do not fit the answer in its place, if there is one."""
    has_results = any(message["role"] in TOOL_ROLES for message in following)
    if has_results and _bare(source) != _bare(answer):
        return "the target does not make the tool calls whose results the source has"
    if not has_results and _calls(answer):
        return "the target calls a tool, and the source has no result of it"
    return None


def with_call_ids(source: Message, answer: Message, following: Sequence[Message]) -> list[Message]:
    """Return the messages after a turn with the ids of the source's calls replaced by those of the answer's."""
    pairs = zip(_calls(source), _calls(answer), strict=False)
    names = {old["id"]: new["id"] for old, new in pairs if isinstance(old.get("id"), str) and "id" in new}
    return [
        {**message, "tool_call_id": names[message["tool_call_id"]]}
        if isinstance(message.get("tool_call_id"), str) and message["tool_call_id"] in names
        else message
        for message in following
    ]


def _calls(message: Message | None) -> list[Mapping[str, Any]]:
    calls = None if message is None else message.get("tool_calls")
    return [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, Sequence) else []


def _bare(message: Message) -> list[tuple[Any, Any]]:
    """Return the name and arguments of each call."""
    functions = [call.get("function", call) for call in _calls(message)]
    return [(function.get("name"), _arguments(function.get("arguments"))) for function in functions]


def _arguments(value: Any) -> Any:
    return load_json(value) if isinstance(value, str) else value
