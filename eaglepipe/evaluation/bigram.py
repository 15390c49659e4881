"""What a draft must beat: the simulated acceptance length of always proposing the likeliest next token (spec 5)."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.types import CachedSample
from eaglepipe.training.data.batch import SampleSource, Split

MERGE_PAIRS = 2**22
"""Pairs collected before they are merged into the counts: bounds memory."""

Ints = NDArray[np.int64]


def bigram_acceptance_length(source: SampleSource, split: Split, ttt_steps: int) -> float:
    """Acceptance length, on the held-out samples, of a bigram table counted over the training samples.

    The table proposes, at every depth, the most frequent successor of the true token before it, as TTT feeds a draft;
    a token without a successor gets the most frequent one of all. Hits and valid slots are those of the trainer module.
    """
    successor = bigram_table(source.read(int(sample)) for sample in split.train)
    hits, valid = np.zeros(ttt_steps, np.int64), np.zeros(ttt_steps, np.int64)
    for sample in split.heldout:
        one_hits, one_valid = chain_counts(source.read(int(sample)), successor, ttt_steps)
        hits += one_hits
        valid += one_valid
    return 1.0 + float((hits / np.maximum(valid, 1)).sum())


def bigram_table(samples: Iterable[CachedSample]) -> Ints:
    """Most frequent successor of each token id over the supervised rows, ties to the lower id: int64 [highest id + 2].

    The last entry is for tokens that were not seen. Memory follows the number of different pairs.
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


def chain_counts(sample: CachedSample, successor: Ints, ttt_steps: int) -> tuple[Ints, Ints]:
    """Hits and valid slots of one sample at each depth, int64 [K]: slot t at depth k looks at row t+1+k."""
    before = sample.input_ids[1:].astype(np.int64)
    guesses = successor[np.minimum(before, len(successor) - 1)]
    supervised = sample.supervised[1:]
    correct = supervised & (guesses == sample.target_top1[1:])
    return _chains(correct, ttt_steps), _chains(supervised, ttt_steps)


def _chains(mask: NDArray[np.bool_], ttt_steps: int) -> Ints:
    """Number of positions from which k+1 set entries follow each other, for each k."""
    chain = mask.copy()
    lengths = np.zeros(ttt_steps, np.int64)
    for step in range(ttt_steps):
        lengths[step] = chain.sum()
        chain = chain[:-1] & mask[step + 1 :]
    return lengths


def _count_pairs(samples: Iterable[CachedSample]) -> tuple[Ints, Ints]:
    codes, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for pairs in _chunks(_pairs(sample) for sample in samples):
        new, numbers = np.unique(pairs, return_counts=True)
        codes, inverse = np.unique(np.concatenate([codes, new]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, numbers])).astype(np.int64)
    return codes, counts


def _pairs(sample: CachedSample) -> Ints:
    rows = np.flatnonzero(sample.supervised)
    ids = sample.input_ids.astype(np.int64)
    return (ids[rows] << 32) | ids[rows + 1]


def _chunks(arrays: Iterable[Ints]) -> Iterator[Ints]:
    held: list[Ints] = []
    num_held = 0
    for array in arrays:
        held.append(array)
        num_held += len(array)
        if num_held >= MERGE_PAIRS:
            yield np.concatenate(held)
            held, num_held = [], 0
    if held:
        yield np.concatenate(held)
