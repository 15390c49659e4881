"""The target's distribution over the draft vocabulary as a cache gives it back, whatever it stores.

S supervised rows of a sample, n of them asked for, D draft vocabulary, V target vocabulary, Ht target hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.head import HeadSpec
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CacheError

ROWS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class HeadRows:
    """Rows of the target's lm_head, in float32."""

    weight: torch.Tensor  # [rows, Ht]
    bias: torch.Tensor | None  # [rows]
    spec: HeadSpec

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last hidden states [n, Ht] -> the target's logits, float32 [n, rows]."""
        raw = hidden.float() @ self.weight.T
        return self.spec.apply(raw if self.bias is None else raw + self.bias)

    def select(self, token_ids: torch.Tensor) -> "HeadRows":
        """The rows of some token ids, where these are the rows of the whole vocabulary."""
        bias = None if self.bias is None else self.bias[token_ids]
        return HeadRows(weight=self.weight[token_ids], bias=bias, spec=self.spec)


def draft_head(cache: Cache, tensors: Mapping[str, torch.Tensor]) -> HeadRows:
    """The head rows of the draft vocabulary, from a cache's `start_tensors()`."""
    return _head_rows(cache, tensors, "lm_head")


def full_head(cache: Cache, tensors: Mapping[str, torch.Tensor]) -> HeadRows:
    """The head rows of every token.

    Raises:
        CacheError: the cache has only those of its draft vocabulary.
    """
    if "lm_head_full.weight" in tensors:
        return _head_rows(cache, tensors, "lm_head_full")
    if cache.spec.draft_vocab_size == cache.spec.vocab_size:
        return draft_head(cache, tensors)
    raise CacheError(
        f"{cache.folder}: another draft vocabulary needs the head rows of every token, and this cache keeps those of "
        "its own draft vocabulary only (no lm_head_full.weight in target.safetensors); precompute with "
        "cache.full_head=true to keep them"
    )


def _head_rows(cache: Cache, tensors: Mapping[str, torch.Tensor], name: str) -> HeadRows:
    bias = tensors.get(f"{name}.bias")
    return HeadRows(
        weight=tensors[f"{name}.weight"].float(), bias=None if bias is None else bias.float(), spec=cache.head
    )


def stored_rows(cache: Cache, sample: CachedSample, rows: NDArray[np.int64]) -> torch.Tensor:
    """Some of the S rows that a sample stores, decoded: hidden states [n, Ht] or probabilities [n, D]."""
    assert sample.sparse_counts is None, "sparse rows have no common width; see CachedSample.sparse_row"
    payload = torch.from_numpy(sample.supervision_payload[rows])
    return cache.spec.rows.decode(EncodedRows(payload=payload))


class TargetDistribution:
    """Distributions of a cache's samples, dense or hidden; holds the head rows where the cache stores hidden states."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._head = draft_head(cache, cache.start_tensors()) if cache.spec.supervision == "hidden" else None

    def of(self, sample: CachedSample, rows: NDArray[np.int64]) -> torch.Tensor:
        """float32 [n, D], rows summing to 1, of some of the sample's S supervised tokens."""
        stored = stored_rows(self._cache, sample, rows).float()
        if self._head is not None:
            return torch.softmax(self._head.logits(stored), dim=-1)
        return stored / stored.sum(dim=-1, keepdim=True)
