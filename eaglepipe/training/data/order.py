"""The samples that train and their order: pure functions of ids, seed and epoch, not of workers or ranks."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from eaglepipe.cache.samples.index_file import id_blocks
from eaglepipe.cache.samples.sample_ids import conversation_hash, conversation_hashes
from eaglepipe.cache.types import SampleIndex
from eaglepipe.training.data.batch import Split

_HASH_RANGE = float(2**64)
_DIGESTED_AT_ONCE = 65_536  # sample ids, so that millions of them are not held twice


def heldout_hash(sample_id: str) -> float:
    """Return a fixed number in [0, 1) for a sample id; the same in every cache, run and version.

    The rows of one conversation that `data regenerate` writes, `id`, `id#2` and so on, have the same number: they share
    their first turns, and must not be parted into training and held-out samples.
    """
    return conversation_hash(sample_id) / _HASH_RANGE


def _fractions(
    sample_ids: Sequence[str], stored: NDArray[np.uint64] | None, samples: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return `heldout_hash` of all samples or of some, from the hashes that the cache's index stores if it does."""
    if stored is None:
        chosen = sample_ids if samples is None else [sample_ids[sample] for sample in samples]
        stored = conversation_hashes(chosen)
    elif samples is not None:
        stored = stored[samples]
    return stored.astype(np.float64) / _HASH_RANGE


def split_samples(
    sample_ids: Sequence[str], heldout_fraction: float, *, stored: NDArray[np.uint64] | None = None
) -> Split:
    """Hold out the samples whose hash is below the fraction.

    A positive fraction of two or more samples holds out at least one, the lowest hash, and leaves at least one; a
    single sample trains.

    Args:
        stored: the conversations' hashes, if the index of the samples has them.
    """
    hashes = _fractions(sample_ids, stored)
    heldout = hashes < heldout_fraction
    if len(hashes) < 2:
        heldout[:] = False
    elif heldout.all():
        heldout[hashes.argmax()] = False
    elif heldout_fraction > 0 and not heldout.any():
        heldout[hashes.argmin()] = True
    del hashes
    return Split(train=np.flatnonzero(~heldout), heldout=np.flatnonzero(heldout))


def choose_heldout(
    sample_ids: Sequence[str],
    split: Split,
    max_samples: int | None,
    *,
    stored: NDArray[np.uint64] | None = None,
) -> NDArray[np.int64]:
    """Return the held-out samples that an evaluation reads: those of lowest hash, by ascending number."""
    if max_samples is None or len(split.heldout) <= max_samples:
        return split.heldout
    hashes = _fractions(sample_ids, stored, split.heldout)
    return np.sort(split.heldout[np.argsort(hashes, kind="stable")[:max_samples]])


def layout_digest(index: SampleIndex) -> str:
    """Hash the ids and lengths of all samples in the order of their numbers."""
    digest = xxhash.xxh3_128()
    for lengths, encoded in id_blocks(index.sample_ids, _DIGESTED_AT_ONCE):
        digest.update(lengths.astype("<i8").tobytes())
        digest.update(encoded)
    for start in range(0, len(index.num_tokens), _DIGESTED_AT_ONCE):
        digest.update(index.num_tokens[start : start + _DIGESTED_AT_ONCE].astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """The order in which the samples of a run train, and the steps that it is divided into."""

    samples: NDArray[np.int64]  # numbers of the samples that train
    num_tokens: NDArray[np.integer]  # of every sample of the source
    weights: NDArray[np.float64] | None = None  # of every sample of the source
    identity: str
    seed: int
    epochs: int
    batch_tokens: int  # of a step, at most; a longer sample is a step of its own

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the samples of one epoch in training order."""
        return epoch_order(self.samples, identity=self.identity, seed=self.seed, epoch=epoch, weights=self.weights)

    def count_steps(self) -> int:
        """Count the optimizer steps of all epochs, from lengths and weights alone."""
        orders = map(self.epoch, range(self.epochs))
        return sum(len(step_ends(self.num_tokens[order], self.batch_tokens)) for order in orders)

    def count_tokens(self) -> int:
        """Count the tokens of the first epoch."""
        if self.weights is None:
            return int(self.num_tokens[self.samples].sum())
        return int(self.num_tokens[self.epoch(0)].sum())


def step_ends(lengths: NDArray[np.integer], batch_tokens: int) -> NDArray[np.int64]:
    """Return where each step ends in an order of samples: as many as fit the budget, at least one."""
    totals = np.cumsum(lengths, dtype=np.int64).data  # whose entries are Python's own integers
    ends = array("q")
    start, before, count = 0, 0, len(totals)
    while start < count:
        near = min(count, start + batch_tokens + 1)  # so many samples have at least the tokens of a step
        end = bisect_right(totals, before + batch_tokens, start, near)
        if end == near < count:  # unless some have none
            end = bisect_right(totals, before + batch_tokens, near)
        start = max(end, start + 1)
        before = totals[start - 1]
        ends.append(start)
    return np.array(ends, dtype=np.int64)


def epoch_order(
    samples: NDArray[np.int64],
    *,
    identity: str,
    seed: int,
    epoch: int,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return the samples of one epoch in training order; weighted caches are interleaved by the one permutation.

    Args:
        samples: numbers of the samples that train.
        weights: of every sample of the source; None, or 1 everywhere, gives each sample once.
    """
    if weights is not None:
        samples = weighted_samples(samples, weights[samples], identity=identity, seed=seed, epoch=epoch)
    return _generator(f"order/{identity}/{seed}/{epoch}").permutation(samples)


def weighted_samples(
    samples: NDArray[np.int64], weights: NDArray[np.float64], *, identity: str, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return the samples of one epoch: one of weight w floor(w) times, and once more in a share frac(w) of the epochs.

    Each epoch has round(w·n) of the n samples that share a weight. Those drawn for the fraction go round a fixed
    permutation, so that over the epochs any two samples are drawn equally often, give or take one.
    """
    parts = []
    for weight in np.unique(weights):
        weighted = samples[weights == weight]
        whole, drawn = divmod(max(1, round(weight * len(weighted))), len(weighted))
        circle = _generator(f"draw/{identity}/{seed}/{float(weight)!r}").permutation(weighted) if drawn else weighted
        places = (epoch * drawn + np.arange(drawn)) % len(weighted)
        parts += [np.repeat(weighted, whole), circle[places]]
    return np.concatenate([samples[:0], *parts])


def _generator(purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(xxhash.xxh3_128_intdigest(purpose.encode())))
