"""The share of one process in rows of slots that several processes divide, and the exchange between these processes.

A row is cut into blocks that go round the processes, forth and back, so that all of them get about equal parts of the
context, of the answers, and of the keys before their queries.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

BLOCK_SLOTS = 256
ROUNDS = 16
"""Blocks of a long row that each process gets: more would spread answers better, but repeat keys in kernels."""


@dataclass(frozen=True, kw_only=True)
class SequenceShare:
    """The blocks of process `rank` among `size`."""

    rank: int
    size: int
    reach: int
    """Slots after each of its own whose token and supervision it reads too: one less than the TTT steps."""
    least_block: int = BLOCK_SLOTS

    def owners(self, shape: tuple[int, int]) -> torch.Tensor:
        """Return the process that computes each slot of rows [B, T], int64 on the host."""
        num_rows, num_slots = shape
        least = min(self.least_block, -(-num_slots // self.size))
        block = max(least, -(-num_slots // (ROUNDS * self.size)))
        places = torch.arange(num_slots) // block % (2 * self.size)
        return torch.minimum(places, 2 * self.size - 1 - places).expand(num_rows, -1)

    def owned(self, shape: tuple[int, int]) -> torch.Tensor:
        """Return the slots that this process computes, bool [B, T] on the host."""
        return self.owners(shape) == self.rank

    def read(self, shape: tuple[int, int]) -> torch.Tensor:
        """Return the slots whose supervision this process reads, bool [B, T] on the host."""
        owned = self.owned(shape)
        read = owned.clone()
        for distance in range(1, min(self.reach, shape[1] - 1) + 1):
            read[:, distance:] |= owned[:, :-distance]
        return read


class SequenceGroup(Protocol):
    """The processes that share rows; every one of them calls the same methods in the same order."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows [r, ...] of all processes, one after the other: [size · r, ...]."""

    def sum_and_scatter(self, rows: torch.Tensor) -> torch.Tensor:
        """Return this process's part [r, ...] of the sum of [size · r, ...] over all processes."""


def gather_rows(rows: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
    """Return `group.gather(rows)`, whose gradient is the sum over the processes that read them."""
    gathered: torch.Tensor = _GatherRows.apply(rows, group)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, group: SequenceGroup) -> torch.Tensor:
        ctx.group = group
        return group.gather(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.sum_and_scatter(grads[0]), None
