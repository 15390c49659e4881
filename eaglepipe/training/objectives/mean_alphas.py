"""How well the draft was accepted in the optimizer step before: what the weight of LK loss `lambda` is made from.

A step's own mean is known only after its last micro-batch, on all ranks; the one before it is known to all of them from
the start, so that a step does not depend on how it was cut.
"""

from collections.abc import Mapping

import torch

from eaglepipe.training.run.distributed import World

NAME = "mean_alphas"


class MeanAlphas:
    """Mean alpha of each TTT step over the whole optimizer step before; 0 before the first, for full cross-entropy."""

    def __init__(self, num_steps: int, world: World) -> None:
        self._world = world
        self._means = torch.zeros(num_steps, dtype=torch.float64, device=world.device)
        self._sums = torch.zeros_like(self._means)

    def arguments(self) -> dict[str, torch.Tensor]:
        """For the trainer module's forward."""
        return {NAME: self._means.float()}

    def add(self, alpha_sums: torch.Tensor) -> None:
        """Take note of a micro-batch, [K]."""
        self._sums += alpha_sums.detach()

    def close(self, counts: torch.Tensor) -> None:
        """End an optimizer step of `counts` [K] slots over all ranks; a TTT step without any keeps its mean."""
        counts, sums = counts.cpu(), self._world.sum(self._sums)
        means = torch.where(counts > 0, sums / counts.clamp(min=1), self._means.cpu())
        self._means = means.to(self._world.device)
        self._sums = torch.zeros_like(self._means)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to keep."""
        return {NAME: self._means}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what `tensors` gave."""
        self._means = tensors[NAME].to(self._world.device, copy=True)
