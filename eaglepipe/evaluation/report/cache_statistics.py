"""Statistics of a cache's tokens: lengths, entropy of the target, mass inside the draft vocabulary.

Lengths are of every sample; the rest is read from samples spread evenly over the cache, which bounds the cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.distribution import TargetDistribution
from eaglepipe.cache.types import CachedSample

Floats = NDArray[np.float64]
MAX_SAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class CacheStatistics:
    """N samples, R of their supervised tokens."""

    num_tokens: NDArray[np.int64]  # [N]
    entropy: Floats
    """[R] of the target inside the draft vocabulary, nats. The tail of sparse rows counts as one token; none of sampled
    rows, whose entries tell no entropy."""
    draft_mass: Floats  # [R] share of the full softmax that the draft vocabulary holds
    covered: float  # share of the read supervised tokens whose top-1 is in the draft vocabulary


def cache_statistics(folders: Sequence[Path], *, max_rows: int = 128) -> CacheStatistics:
    """Return statistics of several caches together; at most `max_rows` rows of a sample are read.

    Raises:
        CacheError, CorruptError: a cache is missing, incomplete or damaged.
    """
    caches = [Cache.open(folder) for folder in folders]
    entropy: list[Floats] = []
    mass: list[Floats] = []
    num_supervised, num_covered = 0, 0
    for cache in caches:
        distribution = TargetDistribution(cache)
        for number in _spread(cache.num_samples, MAX_SAMPLES // len(caches) or 1):
            sample = cache.read(int(number))
            supervised = np.flatnonzero(sample.supervised)
            rows = _spread(len(supervised), max_rows)
            entropy.append(_entropy(distribution, sample, rows))
            mass.append(sample.draft_mass[supervised[rows]].astype(np.float64))
            num_supervised += len(supervised)
            num_covered += int(sample.position_mask.sum())
    return CacheStatistics(
        num_tokens=np.concatenate([cache.index.num_tokens for cache in caches]).astype(np.int64),
        entropy=np.concatenate(entropy),
        draft_mass=np.concatenate(mass),
        covered=num_covered / max(1, num_supervised),
    )


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the numbers 0..count-1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.zeros(0, np.int64)


def _entropy(distribution: TargetDistribution, sample: CachedSample, rows: NDArray[np.int64]) -> Floats:
    if (sparse := distribution.sparse_rows(sample, rows)) is None:
        return torch.special.entr(distribution.of(sample, rows)).sum(dim=-1).double().numpy()
    if sparse.top_first:
        return np.zeros(0)
    buckets = [np.append(probs, tail) for _, probs, tail in sparse.rows()]
    return np.array([float(torch.special.entr(torch.from_numpy(probs)).sum()) for probs in buckets], np.float64)
