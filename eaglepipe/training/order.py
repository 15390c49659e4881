"""Which samples train, and in which order: pure functions of ids, seed and epoch, not of workers or ranks."""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from eaglepipe.training.types import Split

_HASH_RANGE = float(2**64)


def heldout_hash(sample_id: str) -> float:
    """A fixed number in [0, 1) for a sample id; the same in every cache, run and version."""
    return xxhash.xxh3_64_intdigest(sample_id.encode()) / _HASH_RANGE


def split_samples(sample_ids: Sequence[str], heldout_fraction: float) -> Split:
    """Hold out the samples whose hash is below the fraction.

    A positive fraction of two or more samples holds out at least one, the lowest hash, and leaves at least one; a
    single sample trains.
    """
    hashes = np.array([heldout_hash(sample_id) for sample_id in sample_ids])
    heldout = hashes < heldout_fraction
    if len(hashes) < 2:
        heldout[:] = False
    elif heldout.all():
        heldout[hashes.argmax()] = False
    elif heldout_fraction > 0 and not heldout.any():
        heldout[hashes.argmin()] = True
    numbers = np.arange(len(hashes))
    return Split(train=numbers[~heldout], heldout=numbers[heldout])


def choose_heldout(sample_ids: Sequence[str], split: Split, max_samples: int | None) -> NDArray[np.int64]:
    """The held-out samples that an evaluation reads: those of lowest hash, by ascending number."""
    if max_samples is None or len(split.heldout) <= max_samples:
        return split.heldout
    hashes = np.array([heldout_hash(sample_ids[i]) for i in split.heldout])
    return np.sort(split.heldout[np.argsort(hashes, kind="stable")[:max_samples]])


def epoch_order(samples: NDArray[np.int64], *, identity: str, seed: int, epoch: int) -> NDArray[np.int64]:
    """The samples of one epoch in training order."""
    key = xxhash.xxh3_128_intdigest(f"order/{identity}/{seed}/{epoch}".encode())
    return np.random.Generator(np.random.PCG64(key)).permutation(samples)
