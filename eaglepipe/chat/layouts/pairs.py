"""The columns of question and answer that published pairs have."""

from collections.abc import Mapping
from typing import Any

from eaglepipe.chat.faults import RowError

_PAIRS = (
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("input", "output"),
)
_CONTEXT = ("input", "context", "history")


def find_pair(row: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """Return the columns that hold a row's question and answer, or None if it has no pair.

    Raises:
        RowError: it may be more than one pair, or it is a pair of preferences.
    """
    keys = {key for key, value in row.items() if value is not None}
    if {"prompt", "completion"} <= keys:
        return "prompt", "completion"
    if {"chosen", "rejected"} & keys:
        raise RowError(
            "unknown_layout", f"{where}: a row of preferences; write `prompt` and `completion`, or `messages`"
        )
    pairs = [pair for pair in _PAIRS if keys.issuperset(pair) and not (pair[0] == "input" and "instruction" in keys)]
    if len(pairs) > 1:
        named = ", ".join(f"{asked}/{answered}" for asked, answered in pairs)
        raise RowError("unknown_layout", f"{where}: several pairs, {named}; name one `prompt` and `completion`")
    return pairs[0] if pairs else None


def refuse_other_parts(row: Mapping[str, Any], asked: str, where: str) -> None:
    """Raise RowError if a question has a second part, which each publisher joins in another way, or a bad answer."""
    if row.get("label") is False:
        raise RowError("unclear_weight", f"{where}: label false, which marks an answer not to learn; leave the row out")
    parts = [key for key in _CONTEXT if row.get(key) not in (None, "", []) and key != asked]
    if asked != "prompt" and parts:
        raise RowError("unknown_layout", f"{where}: how `{parts[0]}` joins `{asked}` is not known; write one `prompt`")
