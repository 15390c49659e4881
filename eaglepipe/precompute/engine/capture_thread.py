"""A thread that turns the states of finished requests into shards while the engine computes others.

Rows are read from wherever the engine keeps them, a window at a time, so that memory does not grow with a request. A
request is held until its rows are read: a slow disk slows the engine down and never fills the memory.
"""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from eaglepipe.chat.tokens import TokenSample
from eaglepipe.errors import EaglepipeError, ResourceError
from eaglepipe.precompute.encode import RowMasks, StateEncoder, cached_samples, joined
from eaglepipe.precompute.engine.held import HeldAnswers
from eaglepipe.precompute.engine.request import SampleRequest
from eaglepipe.precompute.engine.shards import ShardsInMaking
from eaglepipe.target.model import CapturedStates

WINDOW_BYTES = 64 * 2**20
"""Of raw states that are read at once."""
_MOST_WINDOW_ROWS = 4096
_MOST_WINDOW_ROWS_ON_CPU = 1024  # more are no faster there, and the engine has nothing to do beside the last window
_FEWEST_WINDOW_ROWS = 128


class StateRows(Protocol):
    """States of a finished request where the engine keeps them."""

    def read(self, start: int, end: int) -> torch.Tensor:
        """Return the states of tokens [start, end) at every captured boundary: [n, boundaries, Ht]."""

    def release(self) -> None:
        """Let the engine have the memory back; called once, after the last `read`."""


@dataclass(frozen=True, kw_only=True)
class FinishedRequest:
    """A sample and its states."""

    request: SampleRequest
    sample: TokenSample
    rows: StateRows

    @property
    def num_tokens(self) -> int:
        return len(self.sample.input_ids)


class CaptureThread:
    """Encodes and publishes; a fault of it ends all work, and is told by `status`."""

    def __init__(
        self,
        encoder: StateEncoder,
        final_norm: Callable[[torch.Tensor], torch.Tensor],
        shards: ShardsInMaking,
        *,
        window_rows: int | None = None,
        around: Callable[[], Any] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            final_norm: states at the last boundary -> last hidden states.
            window_rows: rows that are read at once; default: by their bytes.
            around: makes the context in which the thread computes, such as a stream of its own.
        """
        self._held = HeldAnswers(shards)
        self._encoder, self._final_norm, self._shards, self._around = encoder, final_norm, shards, around
        self._jobs: deque[FinishedRequest | Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._error: dict[str, str] | None = None
        self._tokens = self._refused = 0
        self._window_rows = window_rows or choose_window_rows(encoder, on_cpu=False)
        threading.Thread(target=self._run, name="eaglepipe-capture", daemon=True).start()

    def submit(self, finished: FinishedRequest) -> None:
        """Queue a request; its rows are released in any case."""
        with self._changed:
            self._jobs.append(finished)
            self._changed.notify_all()

    def put_known(self, shard: int, num_places: int, places: Mapping[str, int], spare: str) -> None:
        """Queue the samples of a shard that need no states."""
        with self._changed:
            self._jobs.append(lambda: self._shards.put_known(shard, num_places, places, Path(spare)))
            self._changed.notify_all()

    def settle(self, outcomes: Sequence[Mapping[str, Any]], shard: int, num_places: int | None) -> None:
        """Queue what becomes of answers of a shard (see `HeldAnswers.settle`), and its number of places once known."""

        def settled() -> None:
            self._held.settle(shard, outcomes)
            if num_places is not None:
                self._shards.end(shard, num_places)

        with self._changed:
            self._jobs.append(settled)
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """Return the published shards, the tokens and refused samples so far, and the error that ended the work."""
        with self._changed:
            return {
                "published": list(self._shards.published),
                "tokens": self._tokens,
                "refused": self._refused,
                "error": self._error,
            }

    def _run(self) -> None:
        while True:
            jobs = self._next_jobs()
            try:
                if self._error is None:
                    self._do(jobs)
            except BaseException as error:  # noqa: BLE001 - of this thread, told to the process that waits for it
                traceback.print_exc()
                self._fail(error)
            finally:
                for job in jobs:
                    if isinstance(job, FinishedRequest):
                        job.rows.release()

    def _next_jobs(self) -> list[FinishedRequest | Callable[[], None]]:
        """Wait for a job; returns it with the requests behind it that fill a window."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs))
            jobs = [self._jobs.popleft()]
            room = self._window_rows - _num_tokens(jobs[0])
            while isinstance(jobs[0], FinishedRequest) and self._jobs and _num_tokens(self._jobs[0]) <= room:
                if not isinstance(self._jobs[0], FinishedRequest):
                    break
                room -= _num_tokens(self._jobs[0])
                jobs.append(self._jobs.popleft())
            return jobs

    def _do(self, jobs: list[FinishedRequest | Callable[[], None]]) -> None:
        finished = [job for job in jobs if isinstance(job, FinishedRequest)]
        for job in jobs:
            if not isinstance(job, FinishedRequest):
                job()
        if not finished:
            return
        samples = [job.sample for job in finished]
        if self._around is None:
            encoded = self._encode(finished)
        else:
            with self._around():
                encoded = self._encode(finished)
        refused = 0
        for job, item in zip(finished, cached_samples(samples, encoded), strict=True):
            refused += isinstance(item, tuple)
            if job.request.output_turn is None:
                self._shards.put(job.request.shard, job.request.num_places, job.request.place, item)
            else:
                self._held.take(job.request.key, item)
        with self._changed:
            self._tokens += sum(job.num_tokens for job in finished)
            self._refused += refused

    @torch.no_grad()
    def _encode(self, finished: list[FinishedRequest]) -> Any:
        masks = RowMasks.of([job.sample for job in finished], self._encoder.rule)
        num_aux = len(self._encoder.spec.aux_layer_ids)
        parts = []
        for start in range(0, len(masks.supervised), self._window_rows):
            end = min(start + self._window_rows, len(masks.supervised))
            rows = _read(finished, start, end)
            states = CapturedStates(aux=rows[:, :num_aux].contiguous(), last_hidden=self._final_norm(rows[:, -1]))
            parts.append(self._encoder.encode(states, masks.cut(start, end)))
        return joined(parts)

    def _fail(self, error: BaseException) -> None:
        kind = type(error).__name__ if isinstance(error, EaglepipeError) else "EaglepipeError"
        message = str(error) if isinstance(error, EaglepipeError) else f"the writer of shards failed: {error!r}"
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            kind = ResourceError.__name__
            message = (
                "not enough memory to encode states beside the engine; lower gpu_memory_utilization in "
                "target.engine_args, or precompute.head_chunk_rows"
            )
        with self._changed:
            self._error = {"kind": kind, "message": message}
        self._shards.abort()


def _num_tokens(job: FinishedRequest | Callable[[], None]) -> int:
    return job.num_tokens if isinstance(job, FinishedRequest) else 0


def _read(finished: list[FinishedRequest], start: int, end: int) -> torch.Tensor:
    """Rows [start, end) of all requests' tokens, one request after the other."""
    parts, first = [], 0
    for job in finished:
        low, high = max(start - first, 0), min(end - first, job.num_tokens)
        if low < high:
            parts.append(job.rows.read(low, high))
        first += job.num_tokens
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def choose_window_rows(encoder: StateEncoder, *, on_cpu: bool) -> int:
    """Return how many rows to read at once."""
    row_bytes = (len(encoder.spec.aux_layer_ids) + 1) * encoder.spec.hidden_size * 4
    most = _MOST_WINDOW_ROWS_ON_CPU if on_cpu else _MOST_WINDOW_ROWS
    return max(_FEWEST_WINDOW_ROWS, min(most, WINDOW_BYTES // row_bytes))
