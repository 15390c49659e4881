"""Conversations with every assistant turn written anew by the target, each after the turns it has just written.

All conversations go through their first turns together, then their second ones, and so on; batches are sorted by
length, and a fixed list of conversations always gives the same answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from eaglepipe.chat.messages import Message
from eaglepipe.chat.sources import Conversation
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import TemplateError
from eaglepipe.generation.generate import Answer, Sampling, generate
from eaglepipe.target.load import LoadedTarget
from eaglepipe.target.stops import stop_ids

Status = Literal["written", "skipped", "error"]


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """Outcome of one conversation: its new messages, or the reason that there are none."""

    status: Status
    messages: tuple[Message, ...] = ()
    num_tokens: int = 0  # generated, the ends of turns left out
    reason: str = ""  # one of few, for counting
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Rewriter:
    """A target, its chat template, and how it answers."""

    target: LoadedTarget
    chat: ChatTokenizer
    sampling: Sampling
    batch_size: int
    seed: int

    def rewrite(self, conversations: Sequence[Conversation], window: int) -> list[Rewritten]:
        """Return the outcome of each conversation, in their order; `window` numbers the call, for the random draws."""
        drafts = [_Draft(conversation) for conversation in conversations]
        turn, ends = 0, stop_ids(self.target, self.chat)
        while open_drafts := [draft for draft in drafts if draft.outcome is None]:
            prompted = [draft for draft in open_drafts if self._prompt(draft)]
            prompted.sort(key=lambda draft: len(draft.prompt))
            for start in range(0, len(prompted), self.batch_size):
                batch = prompted[start : start + self.batch_size]
                generator = _generator(self.target.device, self.seed, window, turn, start)
                prompts = [draft.prompt for draft in batch]
                answers = generate(self.target, prompts, self.sampling, ends, generator)
                for draft, answer in zip(batch, answers, strict=True):
                    self._take(draft, answer)
            turn += 1
        return [draft.outcome for draft in drafts if draft.outcome is not None]

    def _prompt(self, draft: "_Draft") -> bool:
        """Give the draft the prompt of its next turn, or its outcome."""
        if not draft.positions:
            draft.close("skipped", "nothing to answer")
            return False
        try:
            text = self.chat.template.render(
                draft.messages[: draft.positions[draft.turn]], draft.conversation.tools, prompt=True
            )
        except TemplateError as error:
            draft.close("error", "the chat template refuses it", str(error))
            return False
        draft.prompt = self.chat.token_ids(text)
        room = getattr(self.target.text_config, "max_position_embeddings", None)
        if room is not None and len(draft.prompt) + self.sampling.max_new_tokens > room:
            detail = f"{len(draft.prompt)} tokens and max_new_tokens are more than the target's {room} positions"
            draft.close("error", "prompt too long", detail)
        elif len(draft.prompt) == 0:
            draft.close("error", "the chat template renders an empty prompt")
        return draft.outcome is None

    def _take(self, draft: "_Draft", answer: Answer) -> None:
        """Put an answer in the place of its turn; the last one, or a useless one, decides the outcome."""
        text = self.chat.tokenizer.decode(
            answer.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        draft.num_tokens += len(answer.token_ids)
        if not answer.finite:
            draft.close("error", "the target gave NaN or Inf")
        elif not answer.ended:
            draft.close("skipped", "unfinished after max_new_tokens")
        elif not text.strip():
            draft.close("skipped", "empty answer")
        elif "\N{REPLACEMENT CHARACTER}" in text and not np.array_equal(self.chat.token_ids(text), answer.token_ids):
            draft.close("skipped", "answer is not valid UTF-8")
        else:
            draft.answer(text)


class _Draft:
    """One conversation on its way: turns before `turn` are the target's."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.turn = self.num_tokens = 0
        self.prompt = np.empty(0, dtype=np.int32)
        self.outcome: Rewritten | None = None
        self.messages: list[Message] = list(conversation.messages or ())
        self.positions = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        if not self.positions and self.messages and self.messages[-1]["role"] == "user":
            self.positions = [len(self.messages)]
        if conversation.messages is None:
            self.close("skipped", "already tokenised: there is no text to answer")
        elif any(self.messages[index].get("tool_calls") for index in self.positions if index < len(self.messages)):
            self.close("skipped", "an assistant turn calls tools")

    def close(self, status: Status, reason: str, detail: str = "") -> None:
        self.outcome = Rewritten(status=status, reason=reason, detail=detail, num_tokens=self.num_tokens)

    def answer(self, text: str) -> None:
        position = self.positions[self.turn]
        self.messages[position : position + 1] = [{"role": "assistant", "content": text}]
        self.turn += 1
        if self.turn == len(self.positions):
            answered = tuple(self.messages[: position + 1])
            self.outcome = Rewritten(status="written", messages=answered, num_tokens=self.num_tokens)


def _generator(device: torch.device, *purpose: int) -> torch.Generator:
    """Return a generator of its own for each purpose, given as numbers."""
    state = int(np.random.SeedSequence(purpose).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state)
