"""One or several caches of the same target as one source of samples, safe to read from several threads."""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eaglepipe.cache.codecs import RowCodec
from eaglepipe.cache.head import HeadSpec
from eaglepipe.cache.identity import hash_json
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample, SampleIndex
from eaglepipe.errors import CacheError, ConfigError
from eaglepipe.training.types import TrainingSource


def open_caches(folders: Sequence[Path]) -> "JoinedCaches":
    """Open complete caches that a draft can be trained from together.

    Raises:
        CacheError: a cache cannot be opened, or two of them are not of the same target, vocabulary and encodings.
        ConfigError: no cache is named, or none holds a sample.
    """
    if not folders:
        raise ConfigError("no cache to train from: name one in train.caches, or run `eaglepipe precompute` first")
    caches = [Cache.open(folder) for folder in folders]
    for cache in caches[1:]:
        _check_same_target(caches[0], cache)
    if sum(cache.num_samples for cache in caches) == 0:
        raise ConfigError(f"{', '.join(map(str, folders))}: no samples to train from")
    return JoinedCaches(caches)


def _check_same_target(first: Cache, other: Cache) -> None:
    for name in ("aux_layer_ids", "supervision", "aux_codec", "supervision_codec", "head", "target_config"):
        if getattr(first, name) != getattr(other, name):
            raise CacheError(f"{first.folder} and {other.folder} differ in {name}; train from one of them")
    if not torch.equal(first.selected_token_ids, other.selected_token_ids):
        raise CacheError(f"{first.folder} and {other.folder} have different draft vocabularies; keep them apart")
    mine, others = first.start_tensors(), other.start_tensors()
    if any(not torch.equal(mine[name], others[name]) for name in mine.keys() & others.keys()):
        raise CacheError(f"{first.folder} and {other.folder} come from different weights of the target")


class JoinedCaches:
    """A `TrainingSource` over caches one after the other; its first cache speaks for the target."""

    def __init__(self, caches: Sequence[TrainingSource]) -> None:
        self._caches = tuple(caches)
        self._first = np.cumsum([0] + [len(cache.index.sample_ids) for cache in caches])
        self._lock = threading.Lock()

    @functools.cached_property
    def identity(self) -> str:
        identities = [cache.identity for cache in self._caches]
        return identities[0] if len(identities) == 1 else hash_json(identities)

    @functools.cached_property
    def index(self) -> SampleIndex:
        return self._caches[0].index if len(self._caches) == 1 else _joined([cache.index for cache in self._caches])

    def read(self, i: int, /) -> CachedSample:
        """Sample `i` of all caches; raises what the cache raises."""
        cache = int(np.searchsorted(self._first, i, side="right")) - 1
        with self._lock:
            return self._caches[cache].read(i - int(self._first[cache]))

    @property
    def max_length(self) -> int:
        return max(cache.max_length for cache in self._caches)

    @property
    def supervision(self) -> str:
        return self._caches[0].supervision

    @property
    def aux_codec(self) -> RowCodec:
        return self._caches[0].aux_codec

    @property
    def supervision_codec(self) -> RowCodec:
        return self._caches[0].supervision_codec

    @property
    def head(self) -> HeadSpec:
        return self._caches[0].head

    @property
    def selected_token_ids(self) -> torch.Tensor:
        return self._caches[0].selected_token_ids

    @property
    def selected_token_mask(self) -> torch.Tensor:
        return self._caches[0].selected_token_mask

    @property
    def target_config(self) -> dict[str, Any]:
        return self._caches[0].target_config

    @property
    def aux_layer_ids(self) -> tuple[int, ...]:
        return self._caches[0].aux_layer_ids

    def start_tensors(self) -> dict[str, torch.Tensor]:
        return self._caches[0].start_tensors()


def _joined(indices: Sequence[SampleIndex]) -> SampleIndex:
    sources = tuple(dict.fromkeys(source for index in indices for source in index.sources))
    renumbered = [
        np.array([sources.index(name) for name in index.sources], np.int16)[index.source_of] for index in indices
    ]
    return SampleIndex(
        sample_ids=tuple(sample_id for index in indices for sample_id in index.sample_ids),
        num_tokens=np.concatenate([index.num_tokens for index in indices]),
        num_supervised=np.concatenate([index.num_supervised for index in indices]),
        sources=sources,
        source_of=np.concatenate(renumbered),
    )
