"""Feeds the prompts of claimed shards to an engine, and says of each answer which place of its shard it has.

What was captured with its answer is placed as it is; other samples (answers of an earlier run, turns that stand in a
row of their own) are read by the engine once more.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eaglepipe import errors
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.errors import EaglepipeError
from eaglepipe.precompute.answers.answering import Prompts, draw_number
from eaglepipe.precompute.answers.engine_answerer import PREFILL, Captured, EngineAnswerer
from eaglepipe.precompute.answers.log import ShardAnswers
from eaglepipe.precompute.answers.outcome import Answered
from eaglepipe.precompute.engine.feed import Claim
from eaglepipe.precompute.engine.request import SampleRequest
from eaglepipe.precompute.engine.shards import UNKNOWN_PLACES
from eaglepipe.precompute.lost import check_lost
from eaglepipe.precompute.staging import StagedPrompt
from eaglepipe.progress import ProgressLine
from eaglepipe.vllm_engine.messages import EngineSampling
from eaglepipe.vllm_engine.session import Engine

_SETTLE_SECONDS = 0.5
_WAIT_SECONDS = 0.02


class AnswerFeed:
    """The shards whose prompts are answered one after the other, and are published while the next are answered."""

    def __init__(self, prompts: Prompts, answerer: EngineAnswerer, engine: Engine, progress: ProgressLine) -> None:
        self._prompts, self._answerer, self._engine, self._progress = prompts, answerer, engine, progress
        self._open: dict[int, Claim] = {}
        self._published = self._tokens = self._drops = 0
        self._started = time.monotonic()

    def __enter__(self) -> "AnswerFeed":
        return self

    def __exit__(self, *_: object) -> None:
        for claim in self._open.values():
            claim.lock.close()

    def run(self, claims: Iterator[Claim]) -> int:
        """Fill all claimed shards; returns how many were published."""
        for claim in claims:
            self._open[claim.shard] = claim
            _ShardFeed(self._prompts, self._answerer, self._engine, claim.shard).run(self._update)
        while self._open:
            self._update(0)
            time.sleep(_WAIT_SECONDS)
        return self._published

    def _update(self, num_tokens: int) -> None:
        """Show progress, ask what was published, and let go of it.

        Raises:
            EaglepipeError: as the writer of shards raised it.
            DataError: more samples are lost than data.max_drop_fraction allows.
        """
        (status,) = [status for status in self._engine.call("eaglepipe_status") if status is not None]
        if (error := status["error"]) is not None:
            raise getattr(errors, error["kind"], EaglepipeError)(error["message"])
        published = self._open.keys() & set(status["published"])
        for shard in published:
            self._open.pop(shard).lock.close()
            self._published += 1
        rate = status["tokens"] / (time.monotonic() - self._started)
        gigabytes = self._prompts.plan.layout.cost.total * status["tokens"] / 1e9
        self._progress.update(num_tokens, f"{rate:,.0f} tok/s · {gigabytes:.3g} GB")
        if published:
            check_lost(self._prompts.inputs, self._prompts.plan, report=None)


class _ShardFeed:
    """One shard: outcomes are placed in the order of the plan as soon as all before them are known."""

    def __init__(self, prompts: Prompts, answerer: EngineAnswerer, engine: Engine, shard: int) -> None:
        self._prompts, self._answerer, self._engine, self._shard = prompts, answerer, engine, shard
        layout = prompts.plan.layout
        self._numbers = np.concatenate(layout.shards[shard])
        self._planned = prompts.read(self._numbers)
        self._outcomes: dict[str, Answered] = {}
        self._captured: dict[str, tuple[Captured | None, str | None]] = {}
        self._settled: list[Mapping[str, Any]] = []
        self._next = self._place = 0

    def run(self, update: Any) -> None:
        """Answer and place all prompts; `update` is called now and then with the tokens of the plan that are done."""
        log = ShardAnswers(self._prompts.plan.folder, self._shard)
        self._outcomes = log.read()
        waiting = [prompt for prompt in self._planned if prompt.sample_id not in self._outcomes]
        for prompt in waiting:
            self._answerer.expect(draw_number(prompt), source=prompt.source, num_turns=num_turns(prompt))
        by_id = {prompt.sample_id: prompt for prompt in waiting}
        asked_at = time.monotonic()
        done = self._advance()
        for sample_id, outcome in self._prompts.answer_new(waiting):
            log.append([outcome])
            self._outcomes[sample_id] = outcome
            self._captured[sample_id] = self._answerer.take(draw_number(by_id[sample_id]))
            done += self._advance()
            if time.monotonic() - asked_at > _SETTLE_SECONDS:
                self._settle(None)
                update(done)
                asked_at, done = time.monotonic(), 0
        for _ in self._engine.finished():  # what is read once more
            if time.monotonic() - asked_at > _SETTLE_SECONDS:
                update(done)
                asked_at, done = time.monotonic(), 0
        self._settle(self._place)
        update(done)

    def _advance(self) -> int:
        """Place the outcomes whose turn it is; returns the tokens of the plan that are done with them."""
        first = self._next
        while self._next < len(self._planned) and self._planned[self._next].sample_id in self._outcomes:
            sample_id = self._planned[self._next].sample_id
            self._put(self._outcomes[sample_id], *self._captured.pop(sample_id, (None, None)))
            self._next += 1
        layout = self._prompts.plan.layout
        return int(layout.statistics.num_tokens[self._numbers[first : self._next]].sum())

    def _put(self, outcome: Answered, captured: Captured | None, held: str | None) -> None:
        for item in outcome.samples(self._prompts.inputs):
            if not isinstance(item, TokenSample):
                self._settled.append({"place": self._place, "sample_id": item[0], "reason": item[1]})
            elif captured is not None and held is not None and _is_same(item, captured):
                self._settled.append({"place": self._place, "sample_id": item.sample_id, "key": held})
                held = None
            else:
                self._read_again(item)
            self._place += 1
        if held is not None:
            self._settled.append({"key": held})

    def _read_again(self, sample: TokenSample) -> None:
        asked = SampleRequest.of(sample, shard=self._shard, place=self._place, num_places=UNKNOWN_PLACES)
        sampling = EngineSampling(max_tokens=1, kv_transfer_params=asked.to_params())
        self._engine.add(f"{PREFILL}{self._shard}-{self._place}", sample.input_ids.tolist(), sampling)

    def _settle(self, num_places: int | None) -> None:
        settled, self._settled = self._settled, []
        self._engine.call("eaglepipe_settle", settled, self._shard, num_places)


def num_turns(prompt: StagedPrompt) -> int:
    """Count the answers that a conversation asks for."""
    fields = prompt.fields
    messages: Sequence[Mapping[str, Any]] = fields["messages"]
    return sum(
        message["role"] == "assistant" and index not in fields["context"] for index, message in enumerate(messages)
    )


def _is_same(sample: TokenSample, captured: Captured) -> bool:
    """Return whether a sample is all that was captured, with the same supervision."""
    return np.array_equal(sample.input_ids, captured.input_ids) and np.array_equal(sample.turns > 0, captured.loss_mask)
