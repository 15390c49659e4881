"""The baseline of a draft: simulated acceptance length of a bigram table, which proposes the likeliest successor."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.types import CachedSample

MERGE_PAIRS = 2**22
"""Pairs collected before they are merged into the counts: bounds memory."""

Ints = NDArray[np.int64]


def bigram_acceptance_length(successor: Ints, samples: Iterable[CachedSample], num_depths: int) -> float:
    """Return the simulated acceptance length of a bigram table on samples that it was not counted over.

    The table proposes, at every depth, the most frequent successor of the true token before it, as TTT feeds a draft;
    a token without a successor gets the most frequent one of all. Hits and valid slots are those of the trainer module.
    """
    counts = (chain_counts(sample, successor, num_depths) for sample in samples)
    hits, valid = sum(counts, np.zeros((2, num_depths), np.int64))
    return 1.0 + float((hits / np.maximum(valid, 1)).sum())


def bigram_table(samples: Iterable[CachedSample]) -> Ints:
    """Return the most frequent successor of each token id over the supervised rows, int64 [highest id + 2].

    Ties go to the lower id; the last entry is for unseen tokens. Memory follows the number of different pairs.
    """
    codes, counts = _count_pairs(samples)
    if len(codes) == 0:
        return np.full(1, -1, np.int64)
    tokens, successors = codes >> 32, codes & 0xFFFFFFFF
    order = np.lexsort((successors, -counts, tokens))
    first = np.concatenate([[True], np.diff(tokens[order]) > 0])
    table = np.full(int(tokens.max()) + 2, np.bincount(successors, weights=counts).argmax(), np.int64)
    table[tokens[order][first]] = successors[order][first]
    return table


def chain_counts(sample: CachedSample, successor: Ints, num_depths: int) -> Ints:
    """Return hits and valid slots of one sample at each depth, int64 [2, K]: slot t at depth k by row t+1+k."""
    before = sample.input_ids[1:].astype(np.int64)
    guesses = successor[np.minimum(before, len(successor) - 1)]
    supervised = sample.supervised[1:]
    correct = supervised & (guesses == sample.target_top1[1:])
    return np.stack([_chains(correct, num_depths), _chains(supervised, num_depths)])


def _chains(mask: NDArray[np.bool_], num_depths: int) -> Ints:
    """Count, for each k, the positions from which k+1 consecutive entries are set."""
    chain = mask.copy()
    lengths = np.zeros(num_depths, np.int64)
    for step in range(num_depths):
        lengths[step] = chain.sum()
        chain = chain[:-1] & mask[step + 1 :]
    return lengths


def _count_pairs(samples: Iterable[CachedSample]) -> tuple[Ints, Ints]:
    codes, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for pairs in _chunks(map(_pairs, samples)):
        new, numbers = np.unique(pairs, return_counts=True)
        codes, inverse = np.unique(np.concatenate([codes, new]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, numbers])).astype(np.int64)
    return codes, counts


def _pairs(sample: CachedSample) -> Ints:
    rows = np.flatnonzero(sample.supervised)
    ids = sample.input_ids.astype(np.int64)
    return (ids[rows] << 32) | ids[rows + 1]


def _chunks(arrays: Iterable[Ints]) -> Iterator[Ints]:
    pending: list[Ints] = []
    num_pending = 0
    for array in arrays:
        pending.append(array)
        num_pending += len(array)
        if num_pending >= MERGE_PAIRS:
            yield np.concatenate(pending)
            pending, num_pending = [], 0
    if pending:
        yield np.concatenate(pending)
