"""The target's distribution over the draft vocabulary as a cache gives it back, whatever it stores."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.columns import take_rows
from eaglepipe.cache.supervision.sparse import SparseRows, SparseSupervision
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CacheError
from eaglepipe.target_head import TargetHead

ROWS_AT_ONCE = 64


def full_head(cache: Cache, tensors: Mapping[str, torch.Tensor]) -> TargetHead:
    """Return the head rows of every token, in float32.

    Raises:
        CacheError: the cache has only those of its draft vocabulary.
    """
    if "lm_head_full.weight" not in tensors and cache.vocab.size < cache.vocab.target_size:
        raise CacheError(
            f"{cache.folder}: another draft vocabulary needs the head rows of every token, and this cache keeps those "
            "of its own draft vocabulary only (no lm_head_full.weight in target.safetensors); precompute with "
            "cache.full_head=true to keep them"
        )
    return TargetHead.from_tensors(tensors, cache.head, full=True).to("cpu")


class TargetDistribution:
    """Distributions of a cache's samples; holds the head rows if the cache stores hidden states."""

    def __init__(self, cache: Cache) -> None:
        self._kind, self._head = cache.spec.kind, None
        if not self._kind.stores_probabilities:
            self._head = TargetHead.from_tensors(cache.start_tensors(), cache.head).to("cpu")

    def of(self, sample: CachedSample, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return float32 [n, D], rows summing to 1, of some of the sample's supervised tokens; not of sparse ones."""
        assert not isinstance(self._kind, SparseSupervision), "sparse rows have no common width"
        stored = self._kind.decode_rows(take_rows(sample.supervision, rows))
        return self._kind.distribution(stored, self._head)

    def sparse_rows(self, sample: CachedSample, rows: NDArray[np.int64]) -> SparseRows | None:
        """Return the entries of some of the sample's supervised tokens; None if supervision is not sparse."""
        if not isinstance(self._kind, SparseSupervision):
            return None
        return self._kind.decode(take_rows(sample.supervision, rows), None)
