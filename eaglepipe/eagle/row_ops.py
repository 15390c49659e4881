"""Passes over logits [r, D] for the head's loss: in place, and on a CPU in blocks that stay in its cache."""

from collections.abc import Iterator

import torch

CACHED_ELEMENTS = 256 * 1024
"""Elements of a block on the CPU: 1 MiB of logits, with as much of targets a fit for one core's cache."""

MAX_WIDTH = 128


def row_blocks(matrix: torch.Tensor) -> Iterator[slice]:
    """Blocks of rows of a matrix [r, D]; all rows at once on an accelerator."""
    num_rows = matrix.shape[0]
    step = max(1, CACHED_ELEMENTS // matrix.shape[1]) if matrix.device.type == "cpu" else max(1, num_rows)
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def softmax_in_place(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn logits [r, D] into probabilities; returns log-partition, largest logit and its lowest id, each [r].

    The log-partition comes from the largest logit and its probability; a row of -inf has that log-partition, and
    probabilities that are no numbers.
    """
    top, token = _top(logits)
    torch.softmax(logits, dim=-1, out=logits)
    log_partition = top - logits.gather(-1, token[:, None])[:, 0].log()
    return torch.where(top == -torch.inf, top, log_partition), top, token


def _top(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`logits.max(-1)`. On a CPU maxima alone are several times faster than maxima with places, so the place is looked
    for in the stretch of MAX_WIDTH logits that holds the maximum."""
    size = logits.shape[1]
    if logits.device.type != "cpu" or size < 8 * MAX_WIDTH:
        return logits.max(dim=-1)
    whole = size // MAX_WIDTH * MAX_WIDTH
    tops = logits[:, :whole].unflatten(1, (-1, MAX_WIDTH)).amax(-1)
    if whole < size:
        tops = torch.cat((tops, logits[:, whole:].amax(-1, keepdim=True)), dim=1)
    top, stretch = tops.max(dim=-1)
    places = (stretch[:, None] * MAX_WIDTH + torch.arange(MAX_WIDTH)).clamp_(max=size - 1)
    found = logits.gather(1, places).max(dim=-1).indices
    return top, places.gather(1, found[:, None])[:, 0]
