"""Passes over logits [r, D] for the head's loss: in place, and on a CPU in blocks that stay in its cache.

On a CUDA device the passes are fused by `row_kernels`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from eaglepipe.eagle.kernels import row_kernels

CACHED_ELEMENTS = 256 * 1024
"""Elements of a block on the CPU: 1 MiB of logits and as much of targets, a fit for one core's cache, in few passes."""


def row_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """Yield blocks of rows of a matrix [r, D]; all rows at once on an accelerator."""
    num_rows = matrix.shape[0]
    step = max(1, CACHED_ELEMENTS // matrix.shape[1]) if matrix.device.type == "cpu" else max(1, num_rows)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def softmax_in_place(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn logits [r, D] into probabilities; returns log-partition, largest logit and its lowest id, each [r].

    The log-partition comes from the largest logit and its probability; a row of -inf has that log-partition, and
    probabilities of NaN.
    """
    top, token = _largest(logits)
    torch.softmax(logits, dim=-1, out=logits)
    log_partition = top - logits.gather(-1, token[:, None])[:, 0].log()
    return torch.where(top == -torch.inf, top, log_partition), top, token


def exponentials_in_place(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn logits [r, D] into exponentials over the largest of each row; returns their sums, it and its lowest id, [r].

    Probabilities are exponentials over sums; who scales them anyway saves the pass that divides.
    """
    top, token = _largest(logits)
    return logits.sub_(top[:, None]).exp_().sum(dim=-1), top, token


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if logits.device.type != "cpu":
        top, token = logits.max(dim=-1)
        return top, token
    token = torch.from_numpy(logits.numpy().argmax(axis=-1))  # NumPy finds it several times faster
    return logits.gather(-1, token[:, None])[:, 0], token


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """Losses of r rows of logits, and their gradient."""

    losses: torch.Tensor  # [r]
    predicted: torch.Tensor  # int64 [r], the greedy tokens
    gradient: torch.Tensor  # [r, D], of each row's own loss


@dataclass(frozen=True, kw_only=True)
class RowSoftmax:
    """The softmax of rows of logits, overwriting them; the exponentials may be left to the pass that uses them.

    A row of -inf has that log-partition, and NaN for probabilities.
    """

    log_partition: torch.Tensor  # [r]
    top: torch.Tensor  # [r], the largest logit
    token: torch.Tensor  # int64 [r], its lowest id
    values: torch.Tensor  # [r, D], probabilities; logits where `pending`
    pending: bool

    @classmethod
    def of(cls, logits: torch.Tensor) -> "RowSoftmax":
        if row_kernels.available(logits):
            log_partition, top, token = row_kernels.statistics(logits)
            return cls(log_partition=log_partition, top=top, token=token, values=logits, pending=True)
        parts = zip(*(softmax_in_place(logits[block]) for block in row_blocks(logits)), strict=True)
        log_partition, top, token = (torch.cat(part) for part in parts)
        return cls(log_partition=log_partition, top=top, token=token, values=logits, pending=False)

    def scaled(self, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return probabilities times `scale` [r], in `dtype`, overwriting the values."""
        if self.pending:
            return row_kernels.scaled_softmax(self.values, self.log_partition, scale, dtype)
        return self.values.mul_(scale[:, None]).to(dtype)


def row_dots(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return sum_v first[r, v] · second[r, v], [r], without gradient; NumPy's sums make no product in memory."""
    if first.device.type != "cpu":
        return torch.linalg.vecdot(first, second)
    return torch.from_numpy(np.vecdot(first.numpy(), second.numpy()))


def take_rows(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return rows `rows` [r] of a matrix [N, D]; on a CPU a view if they are consecutive."""
    if matrix.device.type == "cpu" and bool((rows.diff() == 1).all()):
        return matrix.narrow(0, int(rows[0]), len(rows)) if len(rows) else matrix[:0]
    return matrix.index_select(0, rows)
