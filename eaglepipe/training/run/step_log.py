"""A log of optimizer steps: their numbers stay on the device until a window closes, and are then fetched at once."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from eaglepipe.errors import DraftError
from eaglepipe.stores.traffic import traffic
from eaglepipe.training.run.learner import Counters, StepOutcome
from eaglepipe.training.run.metrics import StepRecord, StoreRecord, acceptance_length
from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.state import Evaluation, RunState


class Tracker(Protocol):
    """A destination of a run's numbers."""

    def add_step(self, record: StepRecord, /) -> None: ...

    def add_evaluation(self, evaluation: Evaluation, /) -> None: ...


@runtime_checkable
class StoreTracker(Protocol):
    """A destination of what comes from object stores, too."""

    def add_store(self, record: StoreRecord, /) -> None: ...


class StepLog:
    """The steps since the last closing; the clock runs from `start` on."""

    def __init__(self, world: World, trackers: Sequence[Tracker]) -> None:
        self._world, self._trackers = world, trackers
        self._steps: list[tuple[StepRecord, StepOutcome]] = []
        self._started = 0.0
        self._waited_before = 0.0
        self._traffic_at_start = self._traffic_before = traffic()

    @property
    def is_empty(self) -> bool:
        """Whether no step was added since the last closing."""
        return not self._steps

    def start(self) -> None:
        """Begin a window now, so that evaluations and checkpoints between windows are not counted."""
        self._started = time.monotonic()

    def add(self, record: StepRecord, outcome: StepOutcome) -> None:
        """Add a step, whose outcome completes its record when the window closes."""
        self._steps.append((record, outcome))

    def close(self, state: RunState, waited_seconds: float) -> tuple[RunState, str]:
        """Fetch and record the steps of the window and begin a new one.

        Args:
            waited_seconds: the loader's total so far.

        Returns: the state with the window's seconds added, and a status line.

        Raises:
            DraftError: a loss or gradient is not a finite number; the row is written first.
        """
        outcomes = [outcome for _, outcome in self._steps]
        norms = torch.stack([outcome.grad_norm for outcome in outcomes]).tolist()
        losses = self._world.sum(torch.stack([outcome.loss.double() for outcome in outcomes])).tolist()
        counters = self._world.sum(torch.stack([outcome.counters.stacked() for outcome in outcomes]))
        waited, seconds = waited_seconds - self._waited_before, max(time.monotonic() - self._started, 1e-9)
        tokens_per_s = sum(record.tokens for record, _ in self._steps) / seconds
        for (record, _), loss, norm, chain in zip(self._steps, losses, norms, counters, strict=True):
            complete = replace(
                record,
                loss=loss,
                grad_norm=norm,
                simulated_acceptance_length=_acceptance_length(chain),
                tokens_per_s=tokens_per_s,
                data_wait_share=waited / seconds,
            )
            for tracker in self._trackers:
                tracker.add_step(complete)
            _check_finite(complete)
        status = (
            f"loss {losses[-1]:.4f} · acceptance length {_acceptance_length(counters.sum(0)):.2f} · "
            f"{tokens_per_s:,.0f} tok/s · {waited / seconds:.0%} waiting for data"
        )
        status += self._log_store(self._steps[-1][0].step, seconds)
        self._steps, self._waited_before = [], waited_seconds
        self.start()
        total, total_waited = state.train_seconds + seconds, state.waited_seconds + waited
        return replace(state, train_seconds=total, waited_seconds=total_waited), status

    def _log_store(self, step: int, seconds: float) -> str:
        """Record what came from object stores in the window; returns it as the end of a status line."""
        now = traffic()
        window, self._traffic_before = now - self._traffic_before, now
        if now == self._traffic_at_start:
            return ""
        record = StoreRecord(
            step=step,
            fetched_bytes=window.fetched_bytes,
            fetched_bytes_per_s=window.fetched_bytes / seconds,
            wait_share=window.waited_seconds / seconds,
        )
        for tracker in self._trackers:
            if isinstance(tracker, StoreTracker):
                tracker.add_store(record)
        return f" · store {record.fetched_bytes_per_s / 1e6:,.1f} MB/s, {record.wait_share:.0%} waiting for it"

    def add_evaluation(self, evaluation: Evaluation) -> None:
        for tracker in self._trackers:
            tracker.add_evaluation(evaluation)


def _acceptance_length(counters: torch.Tensor) -> float:
    chain = Counters.of(counters)
    return acceptance_length(chain.hits.tolist(), chain.valid.tolist())


def _check_finite(record: StepRecord) -> None:
    for name in ("loss", "grad_norm"):
        value = getattr(record, name)
        if not math.isfinite(value):
            raise DraftError(
                f"{name} is {value} at step {record.step}; nothing of it is saved. Lower train.learning_rate or "
                "train.max_grad_norm and run again: it goes on from the last checkpoint"
            )
