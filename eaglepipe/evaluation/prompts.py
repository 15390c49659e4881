"""Prompts to decode: the tokens before each assistant turn, of held-out samples or of a file of conversations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.types import CachedSample
from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.sources import Conversation, iter_conversations
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import DataError, EaglepipeError
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.recipe.config import SourceConfig
from eaglepipe.resources import shipped_prompts


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Tokens before an assistant turn."""

    sample_id: str
    token_ids: NDArray[np.int32]

    @property
    def label(self) -> str:
        return f"{self.sample_id}, answer after {len(self.token_ids)} tokens"


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of one origin, whose figures are kept apart."""

    name: str
    prompts: Sequence[Prompt]

    @property
    def sample_ids(self) -> list[str]:
        return [prompt.sample_id for prompt in self.prompts]


@dataclass(frozen=True, kw_only=True)
class CachedTurn:
    """A prompt whose answer is in the cache: the tokens after it, up to `stop`, of sample number `sample`."""

    prompt: Prompt
    sample: int
    stop: int

    @property
    def start(self) -> int:
        return len(self.prompt.token_ids)


def cached_turns(run: FinishedRun, max_turns: int | None = None, *, max_new_tokens: int) -> list[CachedTurn]:
    """Return the first `max_new_tokens` of each supervised assistant turn of the held-out samples, in order.

    Turns of one token are left out: the prompt's own forward gives it.
    """
    samples = ((int(number), run.source.read(int(number))) for number in run.heldout)
    turns = (turn for number, sample in samples for turn in _sample_turns(sample, number, max_new_tokens))
    return list(islice(turns, max_turns))


def read_prompt_sets(
    names: Sequence[Path], chat: ChatTokenizer | None, vocab_size: int, max_prompts: int | None = None
) -> list[PromptSet]:
    """Return a set for each name: that of a set that ships, or a file of conversations.

    Raises:
        DataError: as `file_prompts`.
        EaglepipeError: there is no tokenizer to read prompts with, or a prompt holds an id beyond the vocabulary.
    """
    if chat is None:
        raise EaglepipeError(f"{names[0]}: the target has no tokenizer to read prompts with")
    sets = []
    for name in names:
        prompts = file_prompts(_prompt_file(name), chat, max_prompts)
        for prompt in prompts:
            if (largest := int(prompt.token_ids.max())) >= vocab_size:
                raise EaglepipeError(
                    f"{name}: prompt {prompt.sample_id!r} holds token id {largest}, for which the target "
                    f"has no embedding: its vocabulary has {vocab_size}"
                )
        sets.append(PromptSet(name=name.name, prompts=prompts))
    return sets


def _prompt_file(name: Path) -> Path:
    shipped = shipped_prompts()
    if not name.exists() and name.parent == Path() and not name.suffix:
        if str(name) in shipped:
            return shipped[str(name)]
        close = get_close_matches(str(name), shipped, n=1)
        hint = f"did you mean {close[0]}?" if close else f"those that ship: {', '.join(shipped)}"
        raise DataError(f"no prompts {str(name)!r}, neither a file nor a set that ships; {hint}")
    return name


def file_prompts(file: Path, chat: ChatTokenizer, max_prompts: int | None = None) -> list[Prompt]:
    """Return the prompts of a file of conversations: one for each assistant turn, and one for an unanswered end.

    Raises:
        DataError: no such file, a malformed row, or no prompt.
        TemplateError: the chat template refuses a conversation.
    """
    prompts = (
        Prompt(sample_id=conversation.sample_id, token_ids=token_ids)
        for conversation in map(_sound, iter_conversations([SourceConfig(path=str(file))]))
        for token_ids in _prompt_ids(conversation, chat)
    )
    if not (first := list(islice(prompts, max_prompts))):
        raise DataError(f"{file}: no prompt in it")
    return first


def _sample_turns(sample: CachedSample, number: int, max_new_tokens: int) -> Iterator[CachedTurn]:
    edges = np.diff(np.concatenate([[False], sample.loss_mask, [False]]).astype(np.int8))
    for start, stop in zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True):
        if start > 0 and sample.supervised[start : stop - 1].any():
            prompt = Prompt(sample_id=sample.sample_id, token_ids=np.array(sample.input_ids[:start]))
            yield CachedTurn(prompt=prompt, sample=number, stop=min(stop, start + max_new_tokens))


def _sound(row: Conversation | FaultyRow) -> Conversation:
    if isinstance(row, FaultyRow):
        raise DataError(row.detail)
    return row


def _prompt_ids(conversation: Conversation, chat: ChatTokenizer) -> Iterator[NDArray[np.int32]]:
    if conversation.messages is None:
        assert conversation.input_ids is not None and conversation.turns is not None
        starts = np.flatnonzero(np.diff(conversation.turns, prepend=0) > 0)
        yield from (conversation.input_ids[:start] for start in starts if start > 0)
        return
    messages = conversation.messages
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant" and index > 0]
    if not answers or messages[-1]["role"] != "assistant":
        answers.append(len(messages))
    for index in answers:
        yield chat.token_ids(chat.template.render(messages[:index], conversation.tools, prompt=True))
