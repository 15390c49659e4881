"""The target's distribution over the draft vocabulary as a cache gives it back, whatever it stores.

S supervised rows of a sample, n of them asked for, D draft vocabulary, V target vocabulary, Ht target hidden.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
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


def stored_rows(cache: Cache, sample: CachedSample, rows: NDArray[np.int64]) -> torch.Tensor:
    """Some of the S rows that a sample stores, decoded: hidden states [n, Ht] or probabilities [n, D]."""
    assert sample.sparse_counts is None, "sparse rows have no common width; see CachedSample.sparse_row"
    payload = torch.from_numpy(sample.supervision_payload[rows])
    return cache.spec.rows.decode(EncodedRows(payload=payload))


class TargetDistribution:
    """Distributions of a cache's samples, dense or hidden; holds the head rows where the cache stores hidden states."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._head = None
        if cache.spec.supervision == "hidden":
            self._head = TargetHead.from_tensors(cache.start_tensors(), cache.head).to("cpu")

    def of(self, sample: CachedSample, rows: NDArray[np.int64]) -> torch.Tensor:
        """float32 [n, D], rows summing to 1, of some of the sample's S supervised tokens."""
        stored = stored_rows(self._cache, sample, rows).float()
        if self._head is not None:
            return self._head.probabilities(stored)
        return stored / stored.sum(dim=-1, keepdim=True)
