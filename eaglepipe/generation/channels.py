"""Answers in channels, as gpt-oss writes them: analysis, commentary that calls a tool, and final."""

import re
from typing import Any

from eaglepipe.generation.written_calls import WrittenCall, read_call

_PART = re.compile(
    r"(?:<\|start\|>assistant)?(?P<to>[^<]*)<\|channel\|>(?P<channel>\w+)(?P<rest>(?:(?!<\|message\|>).)*)<\|message\|>"
    r"(?P<text>.*?)(?:<\|end\|>|\Z)",
    re.DOTALL,
)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")


def read_channels(text: str) -> tuple[dict[str, Any], tuple[WrittenCall, ...]] | None:
    """Return the message fields and the calls of an answer in channels; None if the text is not one that they hold."""
    fields: dict[str, Any] = {"content": ""}
    calls: list[WrittenCall] = []
    position = 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None or calls:
            return None
        position = part.end()
        recipient = _RECIPIENT.search(part["to"] + part["rest"])
        if recipient is not None:
            kind = _RECIPIENT.sub("", part["rest"]).strip()
            call = read_call(recipient[1], part["text"], content_type=None if kind in ("", "json") else kind)
            if call is None:
                return None
            calls.append(call)
        elif part["channel"] == "analysis" and "thinking" not in fields and not fields["content"]:
            fields["thinking"] = part["text"]
        elif part["channel"] == "final" and not fields["content"]:
            fields["content"] = part["text"]
        else:
            return None
    return (fields, tuple(calls)) if position else None
