"""Conversations as text, with the spans of characters of each assistant turn.

Spans come from the template's `{% generation %}` markers, or from rendering the conversation up to each turn; the
second way is only right when a longer rendering begins with a shorter one, and every use of it is checked. If the
generation prompt opens a thought that a rendering leaves out, the span of a turn begins where they part; the last turn,
if its message has a thought, is written as the target writes it, after its prompt.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import jinja2

from eaglepipe.chat.limited_rendering import render_limited
from eaglepipe.chat.messages import Message
from eaglepipe.chat.template_input import TEMPLATE_FAULTS, THOUGHT_NAMES, fitted
from eaglepipe.chat.thoughts import ONLY_TAGS, TAG, opened_by, split_thoughts
from eaglepipe.errors import TemplateError

Tools = Sequence[dict[str, Any]] | None

GENERATION_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_FIXED_DAY = date(2025, 1, 1)
_USES_NOW = re.compile(r"\bstrftime_now\b(?!\s+is\b)")
_CODES = (*"aAbBcdDeFHIjmMpSTUwWxXyY", "-d", "-m")
_FIXED_NOW = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f".replace('%{code}', '{_FIXED_DAY.strftime(f'%{code}')}')" for code in _CODES)
    + " }}{%- endmacro -%}"
)


@dataclass(frozen=True, kw_only=True)
class Span:
    """Characters [start, end) of a rendering, written by the turn-th assistant message (counted from 1)."""

    turn: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A whole conversation as text and the spans of its assistant turns, in order."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A Jinja chat template with its variables, and the source of its assistant spans."""

    source: str
    variables: Mapping[str, Any]
    mask: Literal["generation", "prefix"]
    last_only: bool = False  # only the last assistant turn is supervised, so only it needs a span
    cut_at_prompt: bool = False  # its marked blocks begin inside the generation prompt
    with_tools: "ChatTemplate | None" = None  # renders conversations with tools in this one's place

    def for_tools(self, tools: Tools) -> "ChatTemplate":
        """Return the template of a conversation with these tools, as transformers chooses between named ones."""
        return self.with_tools if tools and self.with_tools is not None else self

    def sources(self) -> str | list[str]:
        """Return the Jinja source, or both of them if conversations with tools have one apart."""
        return self.source if self.with_tools is None else [self.source, self.with_tools.source]

    def render(self, messages: Sequence[Message], tools: Tools = None, *, prompt: bool = False) -> str:
        """Return the text of a conversation; `prompt` appends the header that asks the assistant for its turn.

        Raises:
            TemplateError: the template refuses these messages.
            TemplateLimitError: it exceeds the bounds of a rendering; raised by `spans` and `around_turn`, too.
        """
        return self.for_tools(tools)._render(messages, tools, prompt=prompt, marked=False)[0]

    def spans(self, messages: Sequence[Message], tools: Tools = None, context: Collection[int] = ()) -> Rendered:
        """Return the text of a conversation and the spans of the assistant turns that may be supervised.

        Those are the turns whose messages are not in `context` (indices); if `last_only`, at most the last turn of all.

        Raises:
            TemplateError: the template refuses these messages, or no sound spans follow from it.
        """
        turns = list(enumerate(assistant_positions(messages), start=1))
        candidates = turns[-1:] if self.last_only else turns
        supervised = [turn for turn, position in candidates if position not in context]
        template = self.for_tools(tools)
        if template.mask == "generation":
            return template._marked(messages, tools, supervised)
        return template._by_prefix(messages, tools, supervised)

    def around_turn(self, messages: Sequence[Message], tools: Tools, turn: int, text: str) -> tuple[int, int]:
        """Return the ends of a turn's prompt and of the turn itself, as positions in `text`, the full rendering.

        Raises:
            TemplateError: the full rendering does not begin with the prompt, or with the conversation up to the turn.
        """
        position = assistant_positions(messages)[turn - 1]
        prompt = self.render(messages[:position], tools, prompt=True)
        shown = self._shown_prompt(messages[:position], tools, prompt, text)
        upto = text if position == len(messages) - 1 else self.render(messages[: position + 1], tools)
        for part, label in ((shown, "its prompt"), (upto, "the conversation up to its end")):
            if not text.startswith(part):
                raise TemplateError(self._not_a_prefix(label, part, text, turn, len(assistant_positions(messages))))
        if len(upto) < len(shown):
            raise TemplateError(f"assistant turn {turn} is shorter than the header that asks for it")
        return len(shown), len(upto)

    def _shown_prompt(self, before: Sequence[Message], tools: Tools, prompt: str, text: str) -> str:
        """Return the prompt, or its part that a rendering shows which leaves the thought out that the prompt opens."""
        if text.startswith(prompt):
            return prompt
        shown = text[: _common_length(prompt, text)]
        if not ONLY_TAGS.fullmatch(prompt[len(shown) :]):
            return prompt
        header = shown[len(self.render(before, tools)) :]
        return prompt if not header or TAG.search(header) else shown

    def _by_prefix(self, messages: Sequence[Message], tools: Tools, turns: Sequence[int]) -> Rendered:
        text = self.render(messages, tools)
        if list(turns) == [len(assistant_positions(messages))]:
            text = self._with_thought(messages, tools, text)
        ends = ((turn, *self.around_turn(messages, tools, turn, text)) for turn in turns)
        return Rendered(text=text, spans=tuple(Span(turn=turn, start=start, end=end) for turn, start, end in ends))

    def _with_thought(self, messages: Sequence[Message], tools: Tools, text: str) -> str:
        """Return the rendering with the last turn as the target writes it: after its prompt, the thought included.

        Only a template whose prompt opens a thought, and whose rendering leaves it out, is overruled.
        """
        position = assistant_positions(messages)[-1]
        prompt = self.render(messages[:position], tools, prompt=True)
        shown = self._shown_prompt(messages[:position], tools, prompt, text)
        if shown == prompt or (written := _after_prompt(messages[position], prompt)) is None:
            return text
        thought, visible = written
        _, found, end = text[len(shown) :].partition(visible)
        return prompt + thought + visible + end if visible and found else text

    def _marked(self, messages: Sequence[Message], tools: Tools, turns: Sequence[int]) -> Rendered:
        text, marks = self._render(messages, tools, prompt=False, marked=True)
        owners = self._turn_of_each_mark(messages, tools, len(marks))
        firsts = {turn: self.around_turn(messages, tools, turn, text)[0] for turn in turns if self.cut_at_prompt}
        spans = (
            Span(turn=turn, start=max(start, firsts.get(turn, 0)), end=max(end, firsts.get(turn, 0)))
            for turn, (start, end) in zip(owners, marks, strict=True)
        )
        return Rendered(text=text, spans=tuple(span for span in spans if span.turn in turns))

    def _turn_of_each_mark(self, messages: Sequence[Message], tools: Tools, num_marks: int) -> list[int]:
        """Return the turn of each mark: one a message as a rule, otherwise counted by rendering up to each message."""
        positions = assistant_positions(messages)
        if num_marks == len(positions):
            return list(range(1, num_marks + 1))
        turns: list[int] = []
        for turn, position in enumerate(positions, start=1):
            upto = self._render(messages[: position + 1], tools, prompt=False, marked=True)[1]
            turns += [turn] * (len(upto) - len(turns))
        if len(turns) != num_marks:
            raise TemplateError(
                f"{num_marks} generation blocks for {len(positions)} assistant messages, and which belongs to which "
                "is not clear: the template must write one block for each assistant message, whatever follows it"
            )
        return turns

    def _not_a_prefix(self, label: str, part: str, text: str, turn: int, num_turns: int) -> str:
        at = _common_length(part, text)
        last = "" if self.last_only or turn == num_turns else "set data.supervise: last, "
        return (
            f"the chat template is not prefix-preserving: at assistant turn {turn} of {num_turns}, {label} is rendered "
            f"differently alone and inside the whole conversation: {part[at : at + 40]!r} against "
            f"{text[at : at + 40]!r} after {at} characters. Let `eaglepipe data regenerate` write the answers, which "
            f"keeps them as token ids, {last}or give data.chat_template a template that renders earlier turns as they "
            "were generated"
        )

    def _render(
        self, messages: Sequence[Message], tools: Tools, *, prompt: bool, marked: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        try:
            return render_limited(
                self.source,
                fitted(messages, self.source),
                tools,
                prompt=prompt,
                marked=marked,
                variables=self.variables,
            )
        except TEMPLATE_FAULTS as error:
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise TemplateError(f"the chat template cannot render these messages: {error}{line}") from error


def pinned_dates(template: str) -> str:
    """Replace every `strftime_now(...)` by a fixed day's, so that the same rows give the same tokens on any day.

    A call with a literal becomes its text; for any other use, a macro of that name takes the function's place.
    """
    pinned = _TODAY.sub(lambda call: f"{call[1]}{_FIXED_DAY.strftime(call[2])}{call[1]}", template)
    return _FIXED_NOW + pinned if _USES_NOW.search(pinned) else pinned


def assistant_positions(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the assistant messages."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _common_length(a: str, b: str) -> int:
    """Return the number of characters that two texts begin with in common, by bisection: a text may have millions."""
    known, end = 0, min(len(a), len(b)) + 1  # as many are common, and so many are not
    while end - known > 1:
        middle = (known + end) // 2
        known, end = (middle, end) if a[known:middle] == b[known:middle] else (known, middle)
    return known


def _after_prompt(message: Message, prompt: str) -> tuple[str, str] | None:
    """Return what an answer writes after a prompt that opens its thought: up to its visible words, and those.

    None if the prompt opens no thought, or the message has none.
    """
    tags, content = opened_by(prompt), str(message.get("content") or "")
    if tags is None:
        return None
    if (written := split_thoughts(content, prompt)) is not None:
        spaces = prompt[len(prompt.rstrip()) :]
        words = written.visible.lstrip()
        between = written.visible[: len(written.visible) - len(words)]
        return written.thought.removeprefix(spaces) + written.tags[1] + between, words.rstrip()
    for name in THOUGHT_NAMES:
        if isinstance(thought := message.get(name), str) and thought.strip():
            return thought.strip("\n") + f"\n{tags[1]}\n\n", content.strip()
    return None
