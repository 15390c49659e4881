"""Gradients that a forward has finished: one backward scales them in place and hands them on, so there is no second."""

from typing import Any

import torch


def take_gradients(ctx: Any) -> Any:
    """Return what a forward left in `ctx.gradients`, and leave nothing there.

    Raises:
        RuntimeError: they have been taken by an earlier backward.
    """
    if ctx.gradients is None:
        raise RuntimeError(
            "Trying to backward through this loss a second time: its gradients are computed in the forward and handed "
            "over by the first backward, with retain_graph=True too. Run the forward again, add losses up before one "
            "backward, or use implementation='reference' for an EAGLE-3 trainer"
        )
    gradients, ctx.gradients = ctx.gradients, None
    return gradients


def scaled(gradient: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor | None:
    """Scale a gradient in place."""
    return None if gradient is None else gradient.mul_(factor)
