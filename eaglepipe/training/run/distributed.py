"""Data parallelism under torchrun: ranks, devices and sums over ranks; without torchrun, a single process.

Gradients are summed once an optimizer step, after the last micro-batch and already token-weighted, so ranks may have
different numbers of micro-batches, or none.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn

from eaglepipe.devices import resolve_device

BUCKET_ELEMENTS = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of a run, and the rank of this one."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks, on every rank, on the host."""
        if self.size == 1:
            return values.cpu()
        total = values.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.cpu()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; every rank gets the same result."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([int(flag)])).item())

    def barrier(self) -> None:
        if self.size > 1:
            self.any(False)


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the world that torchrun describes, or a single process; leave the process group at the end.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own = resolve_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else None)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if size == 1:
        yield World(device=own)
        return
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield World(device=own, rank=dist.get_rank(), size=size)
    finally:
        dist.destroy_process_group()


def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Add up the ranks' gradients; a parameter that no loss reached has a gradient of zeros, on every rank."""
    gradients = [_gradient(parameter) for parameter in parameters]
    if world.size == 1:
        return
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


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
