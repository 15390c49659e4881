"""What is decoded from: the tokens before each assistant turn, of held-out samples or of a file of conversations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.types import CachedSample
from eaglepipe.chat.sources import iter_conversations
from eaglepipe.chat.template import ChatTokenizer
from eaglepipe.chat.types import Conversation
from eaglepipe.errors import DataError
from eaglepipe.evaluation.trained import TrainedRun
from eaglepipe.recipe.config import SourceConfig


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A prompt, and where it came from."""

    sample_id: str
    prompt: NDArray[np.int32]
    sample: int | None = None  # number in the cache, where its answer begins at token len(prompt)
    stop: int | None = None  # and ends before this one

    @property
    def label(self) -> str:
        return f"{self.sample_id}, answer after {len(self.prompt)} tokens"


def cached_turns(run: TrainedRun, max_turns: int | None = None, *, max_new_tokens: int) -> list[Turn]:
    """The first `max_new_tokens` of each supervised assistant turn of the held-out samples, in order.

    Turns of one token are left out: it is the prompt's own forward that gives it.
    """
    turns = (turn for number in run.heldout for turn in _turns_of(run.source.read(int(number)), int(number)))
    cut = (replace(turn, stop=min(turn.stop or 0, len(turn.prompt) + max_new_tokens)) for turn in turns)
    return list(islice(cut, max_turns))


def file_turns(file: Path, chat: ChatTokenizer, max_turns: int | None = None) -> list[Turn]:
    """A prompt for each assistant turn of a file of conversations; one after the last message where there is none.

    Raises:
        DataError: no such file, a malformed row, or not one prompt.
        TemplateError: the chat template refuses a conversation.
    """
    turns = list(islice(_rendered(iter_conversations([SourceConfig(path=str(file))]), chat), max_turns))
    if not turns:
        raise DataError(f"{file}: no prompt in it")
    return turns


def _turns_of(sample: CachedSample, number: int) -> Iterator[Turn]:
    mask = np.concatenate([[False], sample.loss_mask, [False]]).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(mask) == 1), np.flatnonzero(np.diff(mask) == -1)
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if start > 0 and sample.supervised[start : stop - 1].any():
            prompt = np.array(sample.input_ids[:start])
            yield Turn(sample_id=sample.sample_id, prompt=prompt, sample=number, stop=stop)


def _rendered(conversations: Iterator[Conversation], chat: ChatTokenizer) -> Iterator[Turn]:
    for conversation in conversations:
        for prompt in _prompts(conversation, chat):
            yield Turn(sample_id=conversation.sample_id, prompt=prompt)


def _prompts(conversation: Conversation, chat: ChatTokenizer) -> Iterator[NDArray[np.int32]]:
    if conversation.messages is None:
        assert conversation.input_ids is not None and conversation.turns is not None
        starts = np.flatnonzero(np.diff(conversation.turns, prepend=0) > 0)
        yield from (conversation.input_ids[:start] for start in starts if start > 0)
        return
    for position in _answer_positions(conversation.messages):
        text = chat.template.render(conversation.messages[:position], conversation.tools, prompt=True)
        yield chat.token_ids(text)


def _answer_positions(messages: Sequence[dict[str, object]]) -> list[int]:
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index > 0]
    return answers or [len(messages)]
