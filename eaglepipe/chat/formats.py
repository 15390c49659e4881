"""Rows in the layouts that conversations are published in, turned into one: messages, or token ids with turns.

A row that does not have the shape of its layout is the user's mistake: the error names the row and the fault.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from eaglepipe.chat.faults import RowError
from eaglepipe.chat.layouts.calls import declared_only, read_tools
from eaglepipe.chat.layouts.pairs import find_pair, refuse_other_parts
from eaglepipe.chat.messages import Message, is_message, message_list, read_messages
from eaglepipe.errors import DataError

Row = Mapping[str, Any]
Format = Literal["messages", "sharegpt", "prompt_completion", "tokenized"]

OTHER_NAMES = ("conversation", "dialogue", "dialog", "chat")  # of a list of messages
IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Content:
    """A row's content; messages whose index is in `context` are read by the target and never supervised."""

    messages: tuple[Message, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    context: frozenset[int] = frozenset()
    input_ids: NDArray[np.int32] | None = None  # [T]
    turns: NDArray[np.int32] | None = None  # [T]
    tokenizer: str | None = None  # fingerprint of the tokenizer that gave the ids, if the row names it

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


_MARKS: tuple[tuple[Format, frozenset[str]], ...] = (  # the first one whose keys a row has is its layout
    ("tokenized", frozenset({"input_ids", "tokenizer"})),
    ("messages", frozenset({"messages"})),
    ("sharegpt", frozenset({"conversations"})),
    ("prompt_completion", frozenset({"prompt", "completion"})),
    ("tokenized", frozenset({"input_ids"})),
)


def detect_format(row: Row, where: str) -> Format:
    """Return the layout of a row by its keys; keys whose value is null count as absent.

    Token ids that name their tokenizer are those that a target read and wrote: messages beside them are for people.

    Raises:
        DataError: naming the keys the row has.
    """
    keys = {key for key, value in row.items() if value is not None}
    for layout, marks in _MARKS:
        if marks <= keys:
            return layout
    lists = [key for key in OTHER_NAMES if key in keys]
    if len(lists) == 1:
        return "messages"
    if not lists and find_pair(row, where) is not None:
        return "prompt_completion"
    null = sorted(str(key) for key in row if key not in keys)
    named = f"keys {sorted(map(str, keys))}" + (f" and null {null}" if null else "")
    raise RowError(
        "unknown_layout",
        f"{where}: no known layout; the row has {named}, expected `messages`, `conversations`, `prompt` and "
        "`completion`, or `input_ids` with `loss_mask` or `labels`",
    )


def parse_row(row: Row, layout: str, where: str) -> Content:
    """Return a row's content; token ids that name their tokenizer are never rendered again, whatever the layout.

    Raises:
        DataError: the row does not have the shape of its layout; the message begins with `where`.
    """
    exact = row.get("input_ids") is not None and row.get("tokenizer") is not None
    chosen = detect_format(row, where) if exact or layout == "auto" else layout
    return _PARSERS[chosen](row, where)


def _from_messages(row: Row, where: str) -> Content:
    named = [key for key in ("messages", *OTHER_NAMES) if row.get(key) is not None]
    return _conversation(row, named[0] if named else "messages", where)


def _from_sharegpt(row: Row, where: str) -> Content:
    return _conversation(row, "conversations", where)


def _conversation(row: Row, key: str, where: str) -> Content:
    messages, context = read_messages(_field(row, key, where), where)
    system = _system(row, messages, where)
    context = frozenset(len(system) + index for index in context)
    return _content((*system, *messages), context, row, where)


def _from_prompt_completion(row: Row, where: str) -> Content:
    asked, answered = find_pair(row, where) or ("prompt", "completion")
    refuse_other_parts(row, asked, where)
    prompt, _ = read_messages(_side(row, asked, "user", where), where)
    prompt = (*_system(row, prompt, where), *prompt)
    completion, left_out = read_messages(_side(row, answered, "assistant", where), where)
    context = frozenset(range(len(prompt))) | {len(prompt) + index for index in left_out}
    return _content(prompt + completion, context, row, where)


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
    fingerprint = None if row.get("tokenizer") is None else str(row["tokenizer"])
    return Content(input_ids=input_ids.astype(np.int32), turns=turns.astype(np.int32), tokenizer=fingerprint)


_PARSERS: dict[str, Callable[[Row, str], Content]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "tokenized": _from_tokens,
}


def _field(row: Row, key: str, where: str) -> Any:
    if row.get(key) is None:
        raise DataError(f"{where}: no `{key}`; the row has keys {sorted(map(str, row))}")
    return row[key]


def _system(row: Row, messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Return the message of a system column, or none if the messages begin with it."""
    columns = {key: row[key] for key in ("system", "system_prompt") if row.get(key)}
    if not columns:
        return ()
    name, text = next(iter(columns.items()))
    if any(not isinstance(value, str) or value != text for value in columns.values()):
        raise DataError(f"{where}: `{'` and `'.join(columns)}` are not one text: {list(columns.values())!r}")
    if not messages or messages[0]["role"] not in ("system", "developer"):
        return ({"role": "system", "content": text},)
    if messages[0]["content"].strip() != text.strip():
        raise DataError(f"{where}: the column `{name}` and the system message differ; leave one out")
    return ()


def _side(row: Row, key: str, role: str, where: str) -> list[Any]:
    """Return one side of a pair as a list of messages; a text is one message, unless it is the JSON of messages."""
    value = _field(row, key, where)
    if not isinstance(value, str):
        return message_list(value, where)
    if value.lstrip().startswith("["):
        try:
            stored = json.loads(value)
        except (ValueError, RecursionError):
            stored = None
        if isinstance(stored, list) and stored and all(map(is_message, stored)):
            return stored
    return [{"role": role, "content": value}]


def _content(messages: tuple[Message, ...], context: frozenset[int], row: Row, where: str) -> Content:
    """Join messages with the tools of their row, which OpenAI's first format calls `functions`."""
    tools = read_tools(row.get("functions") if row.get("tools") is None else row["tools"], where)
    if tools is not None:
        messages = tuple(declared_only(message, tools) for message in messages)
    return Content(messages=messages, tools=tools, context=context)


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
