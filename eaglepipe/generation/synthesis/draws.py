"""Draws of users' turns: many on their way at once, taken in the order of their numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from eaglepipe.chat.messages import Message
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.generation.answering import Answer, Answerer, Prompt, Unanswered
from eaglepipe.generation.synthesis.rules import Rules
from eaglepipe.generation.synthesis.user_turn import UserTurn, find_user_turn


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Messages before a user's turn, and its start."""

    messages: tuple[Message, ...]
    turn: UserTurn


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Numbered draws, which take the openings in turn; each number has random draws of its own."""

    openings: Sequence[Opening]
    rules: Rules
    seed: int

    def prompt(self, number: int) -> Prompt:
        """Return the prompt of a draw."""
        opening = self._opening(number)
        return Prompt(token_ids=opening.turn.token_ids, purpose=(self.seed, number), messages=opening.messages)

    def row(self, number: int, answer: Answer) -> dict[str, Any]:
        """Return the row of the log of a draw, as if nothing were seen before."""
        opening, name = self._opening(number), f"{self.seed}-{number}"
        judged = self.rules.judge(opening.turn, answer)
        if isinstance(judged, Unanswered):
            return {"status": judged.status, "reason": judged.reason, "detail": judged.detail, "id": name}
        messages = [*opening.messages, {"role": "user", "content": judged}]
        return {"status": "written", "tokens": len(answer.token_ids), "rows": [{"id": name, "messages": messages}]}

    def _opening(self, number: int) -> Opening:
        return self.openings[number % len(self.openings)]


def find_openings(chat: ChatTokenizer, system: Sequence[str]) -> tuple[Opening, ...]:
    """Return the opening after each system message, or the template's own.

    Raises:
        TemplateError: as `find_user_turn`.
    """
    starts: list[tuple[Message, ...]] = [({"role": "system", "content": text},) for text in system] or [()]
    return tuple(Opening(messages=before, turn=find_user_turn(chat, before)) for before in starts)


def text_of(row: dict[str, Any]) -> str:
    """Return the user's words in a row of the log that was written."""
    return str(row["rows"][0]["messages"][-1]["content"])


def in_order(
    answerer: Answerer, draws: Draws, numbers: range, *, at_once: int, arrived: Callable[[Answer], None]
) -> Iterator[tuple[int, Answer]]:
    """Yield each number with its answer, in order; `at_once` draws are on their way.

    Args:
        arrived: called with each answer as it comes, which may be long before its turn.
    """
    waiting, over, first = iter(numbers), dict[int, Answer](), numbers.start
    for number in islice(waiting, at_once):
        answerer.add(number, draws.prompt(number))
    for number, answer in answerer.answered():
        over[number] = answer
        arrived(answer)
        for following in islice(waiting, 1):
            answerer.add(following, draws.prompt(following))
        while first in over:
            yield first, over.pop(first)
            first += 1
