"""Mean acceptance of the draft in the previous optimizer step, from which LK loss `lambda` takes its weight.

A step's own mean is known only after its last micro-batch on all ranks; that of the previous step is known from the
start, so that a step does not depend on how its samples are split into micro-batches.
"""

from collections.abc import Mapping

import torch

from eaglepipe.training.run.ranks.distributed import World

NAME = "mean_alphas"


class MeanAlphas:
    """Mean alpha of each TTT step over the previous optimizer step; 0 before the first, for full cross-entropy."""

    def __init__(self, num_steps: int, world: World) -> None:
        self._world = world
        self._means = torch.zeros(num_steps, dtype=torch.float64, device=world.device)
        self._sums = torch.zeros_like(self._means)

    def arguments(self) -> dict[str, torch.Tensor]:
        """Return the arguments of the trainer module's forward."""
        return {NAME: self._means.float()}

    def add(self, alpha_sums: torch.Tensor) -> None:
        """Add the sums [K] of a micro-batch."""
        self._sums += alpha_sums.detach()

    def close(self, counts: torch.Tensor) -> None:
        """End an optimizer step of `counts` [K] slots over all ranks; a TTT step without slots keeps its mean."""
        counts, sums = counts.cpu(), self._world.sum(self._sums)
        means = torch.where(counts > 0, sums / counts.clamp(min=1), self._means.cpu())
        self._means = means.to(self._world.device)
        self._sums = torch.zeros_like(self._means)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the state for a checkpoint."""
        return {NAME: self._means}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        self._means = tensors[NAME].to(self._world.device, copy=True)
