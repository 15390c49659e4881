"""A message's content as one text, joined from its parts, with the thoughts among them apart."""

from collections.abc import Mapping
from typing import Any

from eaglepipe.chat.faults import RowError
from eaglepipe.chat.layouts.stored import as_list, rows_of_columns

_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")


def read_content(raw: Any, what: str) -> tuple[str, str | None]:
    """Return the text of a content, a string or parts, and the thoughts that come before it.

    Raises:
        RowError: a part that is not text, or a thought after a text; the message begins with `what`.
    """
    if isinstance(raw, str):
        return raw, None
    parts = as_list(raw)
    if isinstance(parts, Mapping):
        rows = rows_of_columns(parts, f"{what}: the parts of its content")
        parts = [parts] if rows is None and "type" in parts else rows
    if not isinstance(parts, list):
        raise RowError("not_text", f"{what} has a {type(raw).__name__} for content, not a string or a list of parts")
    texts: list[str] = []
    thoughts: list[str] = []
    for number, part in enumerate(parts, start=1):
        kind, text = _part(part, f"{what}, part {number} of its content,")
        if kind == "thought" and texts:
            raise RowError("not_text", f"{what} has a thought after a text in its content")
        (thoughts if kind == "thought" else texts).append(text)
    return "".join(texts), "".join(thoughts) if thoughts else None


def _part(raw: Any, what: str) -> tuple[str, str]:
    """Return "text" or "thought" and the part's text."""
    if isinstance(raw, str):
        return "text", raw
    if not isinstance(raw, Mapping):
        raise RowError("not_text", f"{what} is a {type(raw).__name__}, not a text")
    part = {str(key): value for key, value in raw.items() if value is not None}
    kind = part.get("type", "text" if set(part) == {"text"} else None)
    if kind in _TEXTS:
        text = part.get("text")
    elif kind in _THOUGHTS:
        text = next((part[key] for key in (kind, "text") if key in part), None)
        text = text if isinstance(text, str) or text is None else read_content(text, what)[0]
    else:
        named = f"of type {kind!r}" if kind else f"without a type, with keys {sorted(part)}"
        raise RowError("not_text", f"{what} is {named}; only text is read")
    if not isinstance(text, str):
        raise RowError("not_text", f"{what} is of type {kind!r} and has no text; it has keys {sorted(part)}")
    return ("thought" if kind in _THOUGHTS else "text"), text
