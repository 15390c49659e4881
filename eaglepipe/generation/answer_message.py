"""The message that an answer becomes, by which later turns see it.

Each reading of the answer's text is rendered, and the first one that the template shows as the target wrote it is
taken; a reading is never trusted without that comparison.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eaglepipe.chat.messages import Message
from eaglepipe.chat.render import Tools
from eaglepipe.chat.thoughts import is_shown, split_thoughts
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import TemplateError
from eaglepipe.generation.channels import read_channels
from eaglepipe.generation.written_calls import WrittenCall, find_calls, load_json


@dataclass(frozen=True, kw_only=True)
class AnswerMessage:
    """An answer as a message, and whether the template shows it as the target wrote it."""

    message: Message
    shown: bool


@dataclass(frozen=True, kw_only=True)
class AnswerText:
    """An answer in its place: the text of its prompt, its own, and that of the token that ended it."""

    prompt: str
    body: str
    end: str

    def is_exact(self, rendered: str) -> bool:
        """Return whether a rendering shows the answer character by character."""
        return rendered.startswith(self.prompt + self.body + self.end)

    def is_served(self, rendered: str) -> bool:
        """Return whether it shows the answer as servers do: another end, or no thoughts."""
        shown = is_shown(rendered, self.prompt, self.body, spaces=True)
        return rendered.startswith(self.prompt + self.body) or shown

    def is_trimmed(self, rendered: str) -> bool:
        """Return whether it shows the answer as servers do, without the spaces at its edges."""
        return is_shown(rendered, self.prompt, self.body, spaces=False)


def read_answer(
    chat: ChatTokenizer, messages: Sequence[Message], tools: Tools, answer: AnswerText, call_ids: Sequence[str] = ()
) -> AnswerMessage:
    """Return the message of an answer to `messages`; if the template shows none of its readings, the likeliest one.

    Args:
        call_ids: names for the answer's tool calls, in order, if the target writes none.
    """
    readings: list[Message] = []
    rendered: list[str] = []
    for reading in _distinct(_readings(chat, tools, answer, call_ids)):
        readings.append(reading)
        rendered.append(_rendered(chat, [*messages, reading], tools))
        if answer.is_exact(rendered[-1]):
            return AnswerMessage(message=reading, shown=True)
    for accepts in (answer.is_served, answer.is_trimmed):
        for reading, text in zip(readings, rendered, strict=True):
            if accepts(text):
                return AnswerMessage(message=reading, shown=True)
    return AnswerMessage(message=readings[0], shown=False)


def _rendered(chat: ChatTokenizer, messages: Sequence[Message], tools: Tools) -> str:
    """Return the text of messages, empty if the template refuses them."""
    try:
        return chat.template.render(messages, tools)
    except TemplateError:
        return ""


def _distinct(readings: Iterator[Message]) -> Iterator[Message]:
    seen: list[Message] = []
    for reading in readings:
        if reading not in seen:
            seen.append(reading)
            yield reading


def _readings(chat: ChatTokenizer, tools: Tools, answer: AnswerText, call_ids: Sequence[str]) -> Iterator[Message]:
    """Yield messages for an answer, those that understand more of it first."""
    yield from _by_tokenizer(chat, tools, answer)
    shapes = list(_shapes(answer))
    for fields, visible in shapes:
        found = find_calls(visible, bare=bool(tools))
        if found is not None:
            yield from _calling({**fields, "content": found[0]}, found[1], call_ids)
            yield from _calling({**fields, "content": found[0].strip()}, found[1], call_ids)
    channels = read_channels(answer.body)
    if channels is not None:
        fields, calls = channels
        yield from _calling(fields, calls, call_ids) if calls else iter([_message(fields)])
    for fields, visible in shapes:
        yield _message({**fields, "content": visible})
    yield _message({"content": answer.body.strip()})


def _by_tokenizer(chat: ChatTokenizer, tools: Tools, answer: AnswerText) -> Iterator[Message]:
    """Yield the reading of the tokenizer's own response template, if it has one that reads the answer."""
    if getattr(chat.tokenizer, "response_template", None) is None:
        return
    try:
        text = answer.body + answer.end
        parsed: Any = chat.tokenizer.parse_response(text, prefix=answer.prompt, tools=list(tools) if tools else None)
        stored = load_json(json.dumps(parsed, allow_nan=False))
    except (ValueError, TypeError, LookupError, AttributeError, ImportError):
        return
    if isinstance(stored, dict):
        yield _message({"content": "", **{key: value for key, value in stored.items() if value is not None}})


def _shapes(answer: AnswerText) -> Iterator[tuple[Message, str]]:
    """Yield the fields of thoughts, and the text that is left."""
    thoughts = split_thoughts(answer.body, answer.prompt)
    if thoughts is not None:
        for thought, visible in thoughts.variants():
            yield {"reasoning_content": thought}, visible
    yield {}, answer.body


def _calling(fields: Message, calls: Sequence[WrittenCall], call_ids: Sequence[str]) -> Iterator[Message]:
    names = [*call_ids, *[None] * len(calls)][: len(calls)]
    for as_text in (False, True):
        entries = [call.message(name, as_text=as_text) for call, name in zip(calls, names, strict=True)]
        yield _message({**fields, "tool_calls": entries})


def _message(fields: Message) -> Message:
    return {"role": "assistant", **{key: value for key, value in fields.items() if key != "role"}}
