"""The ways in which a peer's step can run, of which the fastest counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from eaglepipe.bench.timing import Spent, spent


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """A model with one attention, and the calls that cover all batches in one way."""

    title: str
    model: Any
    calls: Sequence[Any]


class FastestSetUp:
    """Passes of the set-up that takes the least time of the processor, found by a pass of each.

    Args:
        models: by attention.
        calls: by how batches are given.
        step: forward and backward of one call; returns loss sums, float64.
        warm_up: whether a pass of each comes before, in which code is compiled.
    """

    def __init__(
        self,
        models: Mapping[str, Any],
        calls: Mapping[str, Sequence[Any]],
        step: Callable[[Any, Any], torch.Tensor],
        device: torch.device,
        *,
        warm_up: bool = False,
    ) -> None:
        self._step, self._device = step, device
        set_ups = [
            SetUp(title=f"{attention} attention, {way}", model=model, calls=calls[way])
            for attention, model in models.items()
            for way in calls
        ]
        for set_up in set_ups if warm_up else ():
            self._run(set_up)
        self._best = min(set_ups, key=lambda set_up: self._run(set_up)[0].cpu) if len(set_ups) > 1 else set_ups[0]

    @property
    def description(self) -> str:
        """What is fastest."""
        return f"{self._best.title} (the fastest of those that run here)"

    def run_all(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass; return what it took and the loss sums of all calls."""
        return self._run(self._best)

    def _run(self, set_up: SetUp) -> tuple[Spent, torch.Tensor]:
        total, sums = Spent(), torch.zeros((), dtype=torch.float64)
        for call in set_up.calls:
            one, call_sums = spent(partial(self._step, set_up.model, call), self._device)
            total, sums = total + one, sums + call_sums.cpu()
        set_up.model.zero_grad(set_to_none=True)
        return total, sums
