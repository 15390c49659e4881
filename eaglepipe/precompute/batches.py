"""Length-sorted batches under a token budget: a pure function of the lengths, whoever runs them.

Longest first, so that a batch too large for the device fails at once and the estimate of the time left errs high.
"""

import numpy as np
from numpy.typing import NDArray

_SIMILAR = 0.95  # of the longest row's length: a batch filled with such rows wastes about 2.5%
_WORTHWHILE = 0.25  # of the token budget: smaller forwards cost more than the padding they save

Batch = NDArray[np.int64]
"""Sample numbers of one forward."""


def plan_batches(lengths: NDArray[np.integer], batch_tokens: int, split_at: int | None = None) -> list[Batch]:
    """Sample indices of each batch; every sample is in exactly one.

    Args:
        lengths: tokens of each sample [N].
        batch_tokens: rows times longest row never exceed it, except for a sample alone in its batch.
        split_at: samples longer than this never share a batch with others not longer (see `Inputs.rope_split`).
    """
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    if split_at is None:
        return _fill(longest_first, lengths, batch_tokens)
    num_long = int((lengths > split_at).sum())
    return _fill(longest_first[:num_long], lengths, batch_tokens) + _fill(
        longest_first[num_long:], lengths, batch_tokens
    )


def plan_shards(
    lengths: NDArray[np.integer], batch_tokens: int, *, shard_tokens: float, split_at: int | None = None
) -> list[list[Batch]]:
    """The batches of `plan_batches`, dealt into shards of up to `shard_tokens` real tokens, at least one batch each.

    They are dealt in a fixed shuffled order, so that any shard is a fair sample of the corpus; the longest batch stays
    first, where a budget that the device cannot hold fails at once.
    """
    batches = plan_batches(lengths, batch_tokens, split_at)
    shuffled = np.random.default_rng(0).permutation(len(batches) - 1) + 1
    shards: list[list[Batch]] = []
    room = 0.0
    for number in [0, *shuffled.tolist()]:
        num_tokens = int(lengths[batches[number]].sum())
        if not shards or num_tokens > room:
            shards.append([])
            room = shard_tokens
        shards[-1].append(batches[number])
        room -= num_tokens
    return shards


def _fill(ordered: NDArray[np.int64], lengths: NDArray[np.integer], batch_tokens: int) -> list[Batch]:
    """Full batches; a batch worth its forward may end early, where rows get much shorter than its longest."""
    descending = lengths[ordered].astype(np.int64)
    batches = []
    start = 0
    while start < len(ordered):
        longest = max(1, int(descending[start]))
        similar = int(np.searchsorted(-descending, -longest * _SIMILAR, side="right")) - start
        worthwhile = int(batch_tokens * _WORTHWHILE) // longest
        rows = max(1, min(batch_tokens // longest, max(similar, worthwhile)))
        batches.append(ordered[start : start + rows])
        start += rows
    return batches
