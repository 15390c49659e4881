"""Partitions one after the other, each with its gradients before the next begins: one part's activations live.

The custom backward returns sums made in the forward, as the fused head's does; nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.autograd.function import once_differentiable

from eaglepipe.eagle.kernels.one_backward import scaled, take_gradients

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """One partition: its share of the loss, which alone carries a gradient, and its R rows on the device."""

    loss: torch.Tensor  # float32 []
    slots: torch.Tensor  # int64 [R], flat anchors
    depths: torch.Tensor  # int64 [R]
    losses: torch.Tensor  # float32 [R]
    matched: torch.Tensor  # bool [R], greedy draft token equal to the target's


def run_parts(
    run: Callable[[Part], PartResult], parts: Sequence[Part], parameters: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, list[PartResult]]:
    """Run the parts; return their summed loss, None if there are none, and their results."""
    if torch.is_grad_enabled() and len(parts) > 1:
        return gradients_in_forward(run, parts, parameters)
    results = [run(part) for part in parts]
    losses = [result.loss for result in results]
    return sum(losses[1:], losses[0]) if losses else None, results


def gradients_in_forward(
    run: Callable[[Part], PartResult], parts: Sequence[Part], parameters: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[PartResult]]:
    """Run the parts; return their summed loss, whose gradients are computed already, and their results."""
    results: list[PartResult] = []
    sums: list[torch.Tensor | None] = [None] * len(parameters)
    for part in parts:
        result = run(part)
        gradients = torch.autograd.grad(result.loss, parameters, allow_unused=True)
        for index, gradient in enumerate(gradients):
            sums[index] = _added(sums[index], gradient)
        results.append(replace(result, loss=result.loss.detach()))
    total = torch.stack([result.loss for result in results]).sum()
    return _FinishedLoss.apply(total, sums, *parameters), results


def _added(total: torch.Tensor | None, gradient: torch.Tensor | None) -> torch.Tensor | None:
    if total is None or gradient is None:
        return gradient if total is None else total
    return total.add_(gradient)


class _FinishedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: torch.Tensor, gradients: list[torch.Tensor | None], *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *(scaled(gradient, grads[0]) for gradient in take_gradients(ctx))
