"""An engine that answers prompts, and captures in the same pass what its target reads and writes for last turns."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.generation.answering import Answer, Prompt, Sampling
from eaglepipe.generation.token_rows import AnswerRow, add_turn
from eaglepipe.precompute.engine.request import SampleRequest, run_lengths
from eaglepipe.recipe.config import DataConfig
from eaglepipe.vllm_engine.messages import EngineSampling
from eaglepipe.vllm_engine.session import Engine

PREFILL = "prefill-"
"""Begins the ids of requests that are no prompts to be answered."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """An answer whose states are held by the engine under a key: its tokens, and the assistant's among them."""

    key: str
    input_ids: NDArray[np.int32]  # [T]
    loss_mask: NDArray[np.bool_]  # [T]


@dataclass(kw_only=True)
class _Conversation:
    """What is known of a conversation that is being answered."""

    source: str
    num_turns: int
    prompt: Prompt | None = None
    row: AnswerRow | None = None  # that the next turn may join
    asked: str | None = None  # key of the request whose states are captured
    captured: Captured | None = None


class EngineAnswerer:
    """One shard's prompts in an engine; the states of a conversation's last turn are captured."""

    def __init__(
        self, engine: Engine, sampling: Sampling, stop_ids: frozenset[int], data: DataConfig, *, capture: bool = True
    ) -> None:
        self._engine, self._sampling, self._stop_ids = engine, sampling, tuple(sorted(stop_ids))
        self._last_only, self._capture = data.supervise == "last", capture
        self._conversations: dict[int, _Conversation] = {}

    def expect(self, number: int, *, source: str, num_turns: int) -> None:
        """Announce a conversation by the number of its requests."""
        self._conversations[number] = _Conversation(source=source, num_turns=num_turns)

    def take(self, number: int) -> tuple[Captured | None, str | None]:
        """Forget a conversation; returns what was captured of it, and the key of what the engine holds."""
        done = self._conversations.pop(number)
        return done.captured, done.asked

    def add(self, request_id: int, prompt: Prompt) -> None:
        """Take the next prompt of a conversation."""
        own = self._conversations[request_id]
        own.prompt, turn = prompt, prompt.purpose[-1]
        captures = self._capture and turn == own.num_turns - 1
        asked = self._request(request_id, own, prompt) if captures else None
        own.asked = None if asked is None else asked.key
        sampling = EngineSampling(
            max_tokens=self._sampling.max_new_tokens,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=prompt.seed if self._sampling.temperature else None,
            stop_token_ids=self._stop_ids,
            read_stop=captures,
            kv_transfer_params={} if asked is None else asked.to_params(),
        )
        self._engine.add(str(request_id), prompt.token_ids.tolist(), sampling)

    def answered(self) -> Iterator[tuple[int, Answer]]:
        """Yield the answers as they come; requests of other kinds pass by."""
        for answer in self._engine.finished():
            if answer.request_id.startswith(PREFILL):
                continue
            number, ids = int(answer.request_id), np.array(answer.token_ids, np.int32)
            own = self._conversations[number]
            assert own.prompt is not None
            rows = add_turn([] if own.row is None else [own.row], own.prompt.token_ids, ids, ())
            own.row = rows[-1]
            if own.asked is not None:
                mask = self._mask(own.row.loss_mask, len(own.prompt.token_ids))
                own.captured = Captured(key=own.asked, input_ids=own.row.input_ids, loss_mask=mask)
            yield number, Answer(token_ids=ids, ended=answer.stop_reason == "stop")

    def _request(self, number: int, own: _Conversation, prompt: Prompt) -> SampleRequest:
        """Describe the sample of a conversation's last turn, whose end is not known yet."""
        before = add_turn([] if own.row is None else [own.row], prompt.token_ids, np.empty(0, np.int32), ())[-1]
        mask = self._mask(before.loss_mask, len(prompt.token_ids))
        starts = mask & ~np.concatenate(([False], mask[:-1]))
        turns = np.where(mask, np.cumsum(starts), 0)
        return SampleRequest(
            shard=0,
            place=0,
            num_places=0,
            sample_id=f"{number}-{prompt.purpose[-1]}",
            source=own.source,
            turns=run_lengths(turns.tolist()),
            output_turn=int(turns.max()) + 1,
            stop_token_ids=self._stop_ids,
        )

    def _mask(self, mask: NDArray[np.bool_], prompt_tokens: int) -> NDArray[np.bool_]:
        """Return the mask of the turns that carry a loss."""
        if not self._last_only:
            return mask
        return np.where(np.arange(len(mask)) < prompt_tokens, False, mask)
