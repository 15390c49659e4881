"""Feeds the samples of claimed shards to an engine in plan order, so that it never idles between shards.

A kill costs one shard, and of the one behind it what the engine holds: states are encoded in the order in which
requests end, so the first of two open shards is published before the other has more than requests that overtook.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eaglepipe import errors
from eaglepipe.cache.writer import ShardItem
from eaglepipe.chat.tokens import TokenSample
from eaglepipe.errors import EaglepipeError
from eaglepipe.precompute.engine.request import SampleRequest
from eaglepipe.precompute.engine.shards import write_spare
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.lost import check_lost
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.progress import ProgressLine
from eaglepipe.vllm_engine.messages import EngineSampling
from eaglepipe.vllm_engine.session import Engine

_OPEN_SHARDS = 2
_QUEUED_BATCHES = 4  # of tokens that the engine has not answered
_STATUS_SECONDS = 0.5
_WAIT_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A shard to be computed, and what holds it meanwhile."""

    shard: int
    known: Mapping[str, ShardItem] = field(default_factory=lambda: MappingProxyType({}))  # by sample id
    lock: ExitStack = field(default_factory=ExitStack)


class Feed:
    """The shards that are open, and the requests that are not answered; leaving it lets go of the shards."""

    def __init__(
        self, inputs: Stage1Inputs, plan: PrecomputePlan, engine: Engine, progress: ProgressLine, spare: Path
    ) -> None:
        """Args: spare: an empty folder for samples that are known."""
        self._inputs, self._plan, self._engine = inputs, plan, engine
        self._progress, self._spare = progress, spare
        self._room = _QUEUED_BATCHES * inputs.recipe.precompute.batch_tokens
        self._open: dict[int, Claim] = {}
        self._waiting: dict[str, int] = {}  # tokens of unanswered requests
        self._waiting_tokens = self._tokens = self._refused = self._published = 0
        self._drops = plan.layout.drops.counts.total()
        self._started = self._asked = time.monotonic()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        for claim in self._open.values():
            claim.lock.close()

    def run(self, claims: Iterator[Claim]) -> int:
        """Feed the samples of all claimed shards; returns how many shards were published."""
        requests = self._requests(claims)
        self._fill(requests)
        while self._open:
            for answer in self._engine.finished():
                self._waiting_tokens -= self._waiting.pop(answer.request_id)
                self._fill(requests)
                if time.monotonic() - self._asked > _STATUS_SECONDS:
                    self._update()
            self._update()  # all is answered, and the last shards are being written
            self._fill(requests)
            if self._open and not self._waiting:
                time.sleep(_WAIT_SECONDS)
        return self._published

    def _fill(self, requests: Iterator[TokenSample | None]) -> None:
        """Feed samples until enough tokens wait in the engine, or a further shard would have to be opened."""
        while self._waiting_tokens < self._room and next(requests, None) is not None:
            pass

    def _requests(self, claims: Iterator[Claim]) -> Iterator[TokenSample | None]:
        """Add a request at each step and yield its sample; None while too many shards are open."""
        while True:
            while len(self._open) >= _OPEN_SHARDS:
                yield None
            if (claim := next(claims, None)) is None:
                return
            self._open[claim.shard] = claim
            yield from self._requests_of(claim)

    def _requests_of(self, claim: Claim) -> Iterator[TokenSample]:
        layout, shard = self._plan.layout, claim.shard
        numbers = [int(number) for group in layout.shards[shard] for number in group]
        if claim.known:
            self._give_known(claim, [layout.tokens.read(number).sample_id for number in numbers])
        for place, number in enumerate(numbers):
            sample = layout.tokens.read(number)
            if sample.sample_id in claim.known:
                continue
            asked = SampleRequest.of(sample, shard=shard, place=place, num_places=len(numbers))
            request_id, tokens = f"{shard}-{place}", sample.input_ids.tolist()
            self._engine.add(request_id, tokens, EngineSampling(max_tokens=1, kv_transfer_params=asked.to_params()))
            self._waiting[request_id] = len(tokens)
            self._waiting_tokens += len(tokens)
            yield sample

    def _give_known(self, claim: Claim, ids: list[str]) -> None:
        identity = self._plan.document.identity
        write_spare(self._spare, claim.shard, list(claim.known.values()), spec=self._inputs.spec, identity=identity)
        places = {sample_id: place for place, sample_id in enumerate(ids) if sample_id in claim.known}
        self._engine.call("eaglepipe_put_known", claim.shard, len(ids), places, str(self._spare))

    def _update(self) -> None:
        """Ask what was published, and let go of it.

        Raises:
            EaglepipeError: as the writer of shards raised it.
            DataError: more samples are lost than data.max_drop_fraction allows.
        """
        status = self._status()
        if (error := status["error"]) is not None:
            kind = getattr(errors, error["kind"], EaglepipeError)
            raise kind(error["message"])
        for shard in self._open.keys() & set(status["published"]):
            self._open.pop(shard).lock.close()
            self._published += 1
        self._refused = status["refused"]
        self._show(status["tokens"])
        if self._refused > self._inputs.recipe.data.max_drop_fraction * self._plan.document.samples:
            check_lost(self._inputs, self._plan, report=None)

    def _status(self) -> dict[str, Any]:
        self._asked = time.monotonic()
        found = [status for status in self._engine.call("eaglepipe_status") if status is not None]
        assert len(found) == 1, f"{len(found)} workers write shards"
        return dict(found[0])

    def _show(self, tokens: int) -> None:
        fresh, self._tokens = tokens - self._tokens, tokens
        rate = tokens / (time.monotonic() - self._started)
        gigabytes = self._plan.layout.cost.total * tokens / 1e9
        dropped = self._drops + self._refused
        self._progress.update(fresh, f"{rate:,.0f} tok/s · {gigabytes:.3g} GB · {dropped} dropped")
