"""Whoever answers prompts: the target itself, an engine in this process, or a server.

Prompts are added at any time and answers come back in any order, so that an engine always has a full batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.messages import Message
from eaglepipe.chat.render import Tools


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids [T], not empty, their text and the messages it renders; `purpose` numbers the draws of its answer."""

    token_ids: NDArray[np.int32]
    purpose: tuple[int, ...] = (0,)
    text: str = ""
    messages: Sequence[Message] = ()
    tools: Tools = ()

    @property
    def seed(self) -> int:
        """A seed of its own for each purpose, below 2**31, as every server takes it."""
        return int(np.random.SeedSequence(self.purpose).generate_state(1, np.uint32)[0] >> 1)


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """Why a prompt has no answer: a reason, one of few, for counting, and what is special to this one."""

    status: Literal["skipped", "error"]
    reason: str
    detail: str = ""
    passing: bool = False  # the same prompt may be answered later


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The continuation of one prompt: the tokens that were sampled, never text tokenised again, if they can be had."""

    token_ids: NDArray[np.int32]  # with the token that ended it
    ended: bool  # by a stop token; False if max_new_tokens came first
    finite: bool = True  # False if the target gave NaN or Inf, which ends a row too
    unanswered: Unanswered | None = None  # then there are no tokens
    figures: Mapping[str, int] = field(default_factory=dict)  # to be added up

    @property
    def body(self) -> NDArray[np.int32]:
        """Its tokens without the one that ended it."""
        return self.token_ids[:-1] if self.ended else self.token_ids

    @property
    def end(self) -> NDArray[np.int32]:
        """The token that ended it, if one did."""
        return self.token_ids[len(self.body) :]


class Answerer(Protocol):
    """Prompts on their way to answers; how they are sampled and which tokens end them is fixed at the start."""

    def add(self, request_id: int, prompt: Prompt) -> None:
        """Take a prompt, without waiting for its answer; no two unanswered ones have one id."""

    def answered(self) -> Iterator[tuple[int, Answer]]:
        """Yield ids with their answers as they come, those of prompts added meanwhile too, until all are answered.

        Raises:
            StoppedError: a signal came, which does not wait for an answer.
        """


def answer_all(answerer: Answerer, prompts: Sequence[Prompt]) -> list[Answer]:
    """Return one answer a prompt, in their order."""
    for number, prompt in enumerate(prompts):
        answerer.add(number, prompt)
    answers = dict(answerer.answered())
    return [answers[number] for number in range(len(prompts))]
