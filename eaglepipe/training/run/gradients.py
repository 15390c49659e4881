"""Gradients over ranks: their sum once an optimizer step, and clipping by their norm.

Gradients are summed after the last micro-batch and already token-weighted, so ranks may have different numbers of
micro-batches, or none. Those of sharded parameters are summed already, and each rank holds its rows of them.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.ranks.sharding import own_rows

BUCKET_ELEMENTS = 16 * 2**20
_CLIP_EPSILON = 1e-6  # as torch's own


def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Add up the ranks' gradients; a parameter that no loss reached has a gradient of zeros, on every rank."""
    gradients = [_gradient(parameter) for parameter in parameters if not isinstance(parameter, DTensor)]
    if world.size == 1:
        return
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        world.add_up(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, world: World) -> torch.Tensor:
    """Scale summed gradients so that their norm over all ranks is at most `max_norm`; returns it as it was, float32."""
    sharded = [own_rows(_gradient(p)) for p in parameters if isinstance(p, DTensor)]
    if not sharded:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    whole = [_gradient(parameter) for parameter in parameters if not isinstance(parameter, DTensor)]
    squares = _squares(sharded, world.device)
    world.add_up(squares)
    norm = (squares + _squares(whole, world.device)).sqrt().float()
    factor = (max_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0)
    for gradient in (*sharded, *whole):
        gradient.mul_(factor)
    return norm


def _squares(gradients: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the sum of squares, float64 []: the order of few large sums must not show in it."""
    norms = [torch.linalg.vector_norm(gradient).double() for gradient in gradients if gradient.numel()]
    return torch.stack([*norms, torch.zeros((), dtype=torch.float64, device=device)]).square().sum()


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.numel() for g in bucket) >= BUCKET_ELEMENTS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
