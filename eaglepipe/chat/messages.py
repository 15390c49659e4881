"""Messages in the spellings that they are published in, turned into role, content and tool calls.

Keys that are not known here pass to the template as they are, except those that may decide which turns are trained on.
"""

from collections.abc import Mapping
from typing import Any

from eaglepipe.chat.faults import RowError
from eaglepipe.chat.layouts.calls import read_function_call, read_tool_calls
from eaglepipe.chat.layouts.parts import read_content
from eaglepipe.chat.layouts.stored import as_list, decoded, rows_of_columns

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
CALLING_ROLES = ("function_call", "tool_call")
SPEAKERS = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
    **dict.fromkeys(CALLING_ROLES, "assistant"),
}

_MOST_MESSAGES = 4096  # each assistant turn is rendered with all before it
_TRAINED_IF_TRUE = ("weight", "train", "training", "loss")
_TRAINED_IF_FALSE = ("masked",)
_UNKNOWN_MASKS = ("mask", "loss_mask", "loss_scale", "loss_weight", "train_detail", "train_on_turn")
_MARKS = frozenset((*_TRAINED_IF_TRUE, *_TRAINED_IF_FALSE, *_UNKNOWN_MASKS))


def read_messages(raw: Any, where: str) -> tuple[tuple[Message, ...], frozenset[int]]:
    """Return a conversation's messages and the indices of those that their row leaves out of training.

    Args:
        raw: A list of messages, a single one, columns of them, or any of these as JSON text.
        where: The location of the row, which begins every error.

    Raises:
        RowError: a message that cannot be read.
    """
    read = [_message(message, f"{where}: message {n}") for n, message in enumerate(message_list(raw, where), start=1)]
    return tuple(message for message, _ in read), frozenset(n for n, (_, trained) in enumerate(read) if not trained)


def message_list(raw: Any, where: str) -> list[Any]:
    """Return the messages of a conversation as they are stored."""
    what = f"{where}: a conversation is a list of messages, this is a {type(raw).__name__}, which"
    value = as_list(decoded(raw, what))
    if isinstance(value, Mapping):
        rows = rows_of_columns(value, f"{where}: the messages")
        value = [value] if rows is None and is_message(value) else rows
    if not isinstance(value, list):
        raise RowError("malformed", f"{where}: a conversation is a list of messages, this is a {type(raw).__name__}")
    if len(value) > _MOST_MESSAGES:
        raise RowError("too_large", f"{where}: {len(value):,} messages, and a row may have {_MOST_MESSAGES:,}")
    return value


def is_message(value: Any) -> bool:
    """Return whether a value is an object that names its speaker."""
    return isinstance(value, Mapping) and (value.get("role") is not None or value.get("from") is not None)


def _message(raw: Any, what: str) -> tuple[Message, bool]:
    """Return a message and whether it may be trained on."""
    value = decoded(raw, f"{what} is a str, not an object with role and content: it") if isinstance(raw, str) else raw
    if not isinstance(value, Mapping):
        raise RowError("malformed", f"{what} is a {type(raw).__name__}, not an object with role and content")
    message = {str(key): entry for key, entry in value.items() if entry is not None}
    speaker = _speaker(message, what)
    role = SPEAKERS.get(speaker, speaker)
    what = f"{what} ({role})"
    if message.get("channel", "final") != "final":
        raise RowError("malformed", f"{what} is of channel {message['channel']!r}; write a thought as `thinking`")
    content = _pop_content(message, what)
    if speaker in CALLING_ROLES:
        calls, content = read_function_call(content, what), ""
    else:
        calls = _pop_calls(message, what) if "tool_calls" in message or "function_call" in message else []
    if calls and role != "assistant":
        raise RowError("malformed", f"{what} calls tools, and only the assistant can")
    if content is None and not calls:
        raise RowError("no_content", f"{what} has no content; only one with tool_calls may lack it")
    trained = message.keys().isdisjoint(_MARKS) or _pop_trained(message, role, what)
    if content is not None:
        message["content"], thought = read_content(content, what)
        if thought is not None:
            _add_thought(message, thought, role, what)
    return {"role": role, **message, **({"tool_calls": calls} if calls else {})}, trained


def _speaker(message: Message, what: str) -> str:
    """Remove the speaker from a message and return its name in lower case, checked."""
    sharegpt = "role" not in message and "from" in message
    name = message.pop("from") if sharegpt else message.pop("role", None)
    speaker = name.strip().lower() if isinstance(name, str) else None
    if speaker is None or (speaker not in ROLES and speaker not in SPEAKERS):
        known = ", ".join(dict.fromkeys((*ROLES, *SPEAKERS)))
        label = "is from the unknown" if sharegpt else "has the unknown role"
        raise RowError("unknown_role", f"{what} {label} {name!r}; known: {known}")
    if not sharegpt and (other := str(message.get("from", "")).lower()) in {*ROLES, *SPEAKERS}:
        if SPEAKERS.get(other, other) != SPEAKERS.get(speaker, speaker):
            raise RowError("malformed", f"{what} has the role {name!r} and is from {other!r}")
        del message["from"]
    return speaker


def _pop_content(message: Message, what: str) -> Any:
    if "content" not in message:
        return message.pop("value", None)
    content = message.pop("content")
    if isinstance(message.get("value"), str) and message.pop("value") != content:
        raise RowError("malformed", f"{what} has a content and a value that differ")
    return content


def _pop_calls(message: Message, what: str) -> list[dict[str, Any]]:
    calls = read_tool_calls(message.pop("tool_calls", None), what)
    if "function_call" not in message:
        return calls
    if calls:
        raise RowError("malformed", f"{what} has both tool_calls and function_call")
    return read_tool_calls(message.pop("function_call"), what, "function_call")


def _pop_trained(message: Message, role: str, what: str) -> bool:
    """Remove the marks that tell whether a message is trained on, and return what they say together."""
    if role != "assistant":  # never trained on, whatever its marks
        for key in (*_TRAINED_IF_TRUE, *_TRAINED_IF_FALSE):
            message.pop(key, None)
        return True
    if unknown := [key for key in _UNKNOWN_MASKS if key in message]:
        raise RowError(
            "unclear_weight",
            f"{what} has {unknown[0]!r}, which is not read; use `weight`, 0 or 1",
        )
    marks = [_mark(message.pop(key), key, what) for key in _TRAINED_IF_TRUE if key in message]
    marks += [not _mark(message.pop(key), key, what) for key in _TRAINED_IF_FALSE if key in message]
    return all(marks)


def _mark(value: Any, key: str, what: str) -> bool:
    if not isinstance(value, (bool, int, float)) or value not in (0, 1):
        raise RowError("unclear_weight", f"{what} has {key} {value!r}; only 0 and 1, or true and false, are read")
    return bool(value)


def _add_thought(message: Message, thought: str, role: str, what: str) -> None:
    if role != "assistant" or "reasoning_content" in message:
        raise RowError("malformed", f"{what} has a thought in its content, and only an assistant without another may")
    message["reasoning_content"] = thought
