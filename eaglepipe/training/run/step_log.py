"""A log of optimizer steps: their numbers stay on the device until a window closes, and are then fetched at once."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from eaglepipe.errors import DraftError
from eaglepipe.training.run.distributed import World
from eaglepipe.training.run.learner import Counters, StepOutcome
from eaglepipe.training.run.metrics import StepRecord, acceptance_length
from eaglepipe.training.run.state import Evaluation


class Tracker(Protocol):
    """A destination of a run's numbers."""

    def add_step(self, record: StepRecord, /) -> None: ...

    def add_evaluation(self, evaluation: Evaluation, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LoggedStep:
    """An optimizer step; sizes are sums over ranks."""

    step: int
    epoch: int
    learning_rate: float
    num_tokens: int
    num_supervised: int
    num_slots: int
    outcome: StepOutcome


@dataclass(frozen=True, kw_only=True)
class LogWindow:
    """Seconds and a status line of the steps between two closings."""

    seconds: float
    waited_seconds: float
    status: str


class StepLog:
    """The steps since the last closing; the clock runs from `start` on."""

    def __init__(self, world: World, trackers: Sequence[Tracker]) -> None:
        self._world, self._trackers = world, trackers
        self._taken: list[LoggedStep] = []
        self._started = 0.0
        self._waited_before = 0.0

    def start(self) -> None:
        """Begin a window now, so that evaluations and checkpoints between windows are not counted."""
        self._started = time.monotonic()

    def add(self, taken: LoggedStep) -> None:
        self._taken.append(taken)

    def close(self, waited_seconds: float) -> LogWindow:
        """Fetch and record the steps of the window and begin a new one; `waited_seconds` is the loader's total so far.

        Raises:
            DraftError: a loss or gradient is not a finite number; the row is written first.
        """
        outcomes = [taken.outcome for taken in self._taken]
        norms = torch.stack([outcome.grad_norm for outcome in outcomes]).tolist()
        losses = self._world.sum(torch.stack([outcome.loss.double() for outcome in outcomes])).tolist()
        counters = self._world.sum(torch.stack([outcome.counters.stacked() for outcome in outcomes]))
        waited, seconds = waited_seconds - self._waited_before, max(time.monotonic() - self._started, 1e-9)
        tokens_per_s = sum(taken.num_tokens for taken in self._taken) / seconds
        for taken, loss, norm, chain in zip(self._taken, losses, norms, counters, strict=True):
            record = StepRecord(
                step=taken.step,
                epoch=taken.epoch,
                loss=loss,
                learning_rate=taken.learning_rate,
                grad_norm=norm,
                simulated_acceptance_length=_acceptance_length(chain),
                tokens=taken.num_tokens,
                supervised_tokens=taken.num_supervised,
                padding=1 - taken.num_tokens / taken.num_slots,
                tokens_per_s=tokens_per_s,
                data_wait_share=waited / seconds,
            )
            for tracker in self._trackers:
                tracker.add_step(record)
            _check_finite(record)
        status = (
            f"loss {losses[-1]:.4f} · acceptance length {_acceptance_length(counters.sum(0)):.2f} · "
            f"{tokens_per_s:,.0f} tok/s · {waited / seconds:.0%} waiting for data"
        )
        self._taken, self._waited_before = [], waited_seconds
        self.start()
        return LogWindow(seconds=seconds, waited_seconds=waited, status=status)

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
