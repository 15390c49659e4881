"""Rows in the layouts that conversations are published in, turned into one: messages, or token ids with turns.

A row that does not have the shape of its layout is the user's mistake: the error names the row and the fault.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from eaglepipe.errors import DataError

Row = Mapping[str, Any]
Message = dict[str, Any]
Format = Literal["messages", "sharegpt", "prompt_completion", "tokenized"]

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
} | {role: role for role in ROLES}
IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Content:
    """A row's content; messages whose index is in `context` are read by the target and never supervised."""

    messages: tuple[Message, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    context: frozenset[int] = frozenset()
    input_ids: NDArray[np.int32] | None = None  # [T]
    turns: NDArray[np.int32] | None = None  # [T]

    def digests(self) -> tuple[bytes, str]:
        """Return the content's xxh3_128 (16 bytes) and its xxh3_64 in hex.

        Raises:
            UnicodeEncodeError: a text holds half a surrogate pair.
        """
        if self.input_ids is None or self.turns is None:
            fields = {"messages": self.messages, "tools": self.tools, **self._context_field()}
            text = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
            payload = text.encode("utf-8")
        else:
            payload = b"tokens" + self.input_ids.tobytes() + self.turns.tobytes()
        return xxhash.xxh3_128_digest(payload), xxhash.xxh3_64_hexdigest(payload)

    def _context_field(self) -> dict[str, int | list[int]]:
        """Return the context as digests have it: by its length, if it is the first messages."""
        count = len(self.context)
        leading = self.context == frozenset(range(count))
        return {"num_context": count} if leading else {"context": sorted(self.context)}


def detect_format(row: Row, where: str) -> Format:
    """Return the layout of a row by its keys; keys whose value is null count as absent.

    Raises:
        DataError: naming the keys the row has.
    """
    keys = {key for key, value in row.items() if value is not None}
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "sharegpt"
    if {"prompt", "completion"} <= keys:
        return "prompt_completion"
    if "input_ids" in keys:
        return "tokenized"
    raise DataError(
        f"{where}: no known layout; the row has keys {sorted(map(str, row))}, expected `messages`, `conversations`, "
        "`prompt` and `completion`, or `input_ids` with `loss_mask` or `labels`"
    )


def parse_row(row: Row, layout: Format | Literal["auto"], where: str) -> Content:
    """Return a row's content.

    Raises:
        DataError: the row does not have the shape of its layout; the message begins with `where`.
    """
    return _PARSERS[detect_format(row, where) if layout == "auto" else layout](row, where)


def _from_messages(row: Row, where: str) -> Content:
    return Content(messages=_messages(_field(row, "messages", where), where), tools=_tools(row, where))


def _from_sharegpt(row: Row, where: str) -> Content:
    renamed = [_sharegpt_message(raw, where, n) for n, raw in _numbered(_field(row, "conversations", where), where)]
    return Content(messages=_messages([*_system(row), *renamed], where), tools=_tools(row, where))


def _from_prompt_completion(row: Row, where: str) -> Content:
    prompt = _messages([*_system(row), *_side(row, "prompt", "user", where)], where)
    completion = _messages(_side(row, "completion", "assistant", where), where)
    return Content(messages=prompt + completion, tools=_tools(row, where), context=frozenset(range(len(prompt))))


def _from_tokens(row: Row, where: str) -> Content:
    input_ids = _integers(_field(row, "input_ids", where), "input_ids", where)
    if input_ids.size and (input_ids.min() < 0 or input_ids.max() > np.iinfo(np.int32).max):
        raise DataError(f"{where}: input_ids run from {input_ids.min()} to {input_ids.max()}; ids are 0 or more")
    loss_mask = _loss_mask(row, input_ids, where)
    if row.get("attention_mask") is not None:
        real = _same_length(row, "attention_mask", input_ids, where) != 0
        input_ids, loss_mask = input_ids[real], loss_mask[real]
    starts = loss_mask & ~np.concatenate(([False], loss_mask[:-1]))
    turns = np.where(loss_mask, np.cumsum(starts), 0)
    return Content(input_ids=input_ids.astype(np.int32), turns=turns.astype(np.int32))


_PARSERS: dict[Format, Callable[[Row, str], Content]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "tokenized": _from_tokens,
}


def _field(row: Row, key: str, where: str) -> Any:
    if row.get(key) is None:
        raise DataError(f"{where}: no `{key}`; the row has keys {sorted(map(str, row))}")
    return row[key]


def _numbered(raw: Any, where: str) -> list[tuple[int, Any]]:
    if isinstance(raw, str) or not isinstance(raw, Sequence):
        raise DataError(f"{where}: a conversation is a list of messages, this is a {type(raw).__name__}")
    return list(enumerate(raw, start=1))


def _messages(raw: Any, where: str) -> tuple[Message, ...]:
    return tuple(_message(message, where, n) for n, message in _numbered(raw, where))


def _message(raw: Any, where: str, number: int) -> Message:
    if not isinstance(raw, Mapping):
        raise DataError(f"{where}: message {number} is a {type(raw).__name__}, not an object with role and content")
    message = {str(key): value for key, value in raw.items() if value is not None}
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f"{where}: message {number} has the unknown role {role!r}; known: {', '.join(ROLES)}")
    if content is None:
        if role == "assistant" and (message.get("tool_calls") or message.get("function_call")):
            return message
        raise DataError(f"{where}: message {number} ({role}) has no content; only one with tool_calls may lack it")
    if not isinstance(content, str):
        raise DataError(f"{where}: message {number} ({role}) has a {type(content).__name__} for content, not a string")
    return message


def _sharegpt_message(raw: Any, where: str, number: int) -> Any:
    if not isinstance(raw, Mapping) or "from" not in raw:
        return raw
    role = SHAREGPT_ROLES.get(str(raw["from"]))
    if role is None:
        known = ", ".join(SHAREGPT_ROLES)
        raise DataError(f"{where}: message {number} is from the unknown {raw['from']!r}; known: {known}")
    others = {key: value for key, value in raw.items() if key not in ("from", "value")}
    return {"role": role, "content": raw.get("value"), **others}


def _system(row: Row) -> list[Message]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _side(row: Row, key: str, role: str, where: str) -> list[Any]:
    """Return one side of a prompt and completion pair as a list of messages."""
    value = _field(row, key, where)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [message for _, message in _numbered(value, where)]


def _tools(row: Row, where: str) -> tuple[dict[str, Any], ...] | None:
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise DataError(f"{where}: `tools` is a string that is not JSON: {error}") from None
    if not tools:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{where}: `tools` is not a list of objects")
    return tuple(dict(tool) for tool in tools)


def _loss_mask(row: Row, input_ids: NDArray[np.int64], where: str) -> NDArray[np.bool_]:
    if row.get("loss_mask") is not None:
        mask = _same_length(row, "loss_mask", input_ids, where)
        if not np.isin(mask, (0, 1)).all():
            raise DataError(f"{where}: loss_mask holds values other than 0 and 1")
        return mask != 0
    if row.get("labels") is None:
        raise DataError(f"{where}: `input_ids` need `loss_mask` or `labels`; the row has keys {sorted(map(str, row))}")
    labels = _same_length(row, "labels", input_ids, where)
    mask = labels != IGNORED_LABEL
    if not np.array_equal(labels[mask], input_ids[mask]):
        raise DataError(f"{where}: labels are unshifted: each is its own input id, or {IGNORED_LABEL}")
    return mask


def _same_length(row: Row, key: str, input_ids: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    values = _integers(row[key], key, where)
    if values.shape != input_ids.shape:
        raise DataError(f"{where}: {key} has {len(values)} entries for {len(input_ids)} input_ids")
    return values


def _integers(values: Any, key: str, where: str) -> NDArray[np.int64]:
    try:
        array = np.asarray(values if len(values) else [], dtype=None if len(values) else np.int64)
    except (TypeError, ValueError):
        array = np.empty((), dtype=np.float64)
    if array.ndim != 1 or array.dtype.kind not in "bi":
        raise DataError(f"{where}: {key} is not a flat list of integers")
    return array.astype(np.int64)
