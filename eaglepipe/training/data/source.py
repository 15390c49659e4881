"""Caches of one target joined to one source of samples, safe to read from several threads."""

import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eaglepipe.cache.compare import check_same_target
from eaglepipe.cache.reader import Cache, choose_fetching
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.storage import CacheShare
from eaglepipe.cache.types import CachedSample, SampleIndex, join_indices
from eaglepipe.errors import ConfigError
from eaglepipe.files.hashing import hash_json
from eaglepipe.training.data.ahead import StoredPart, StoredSource
from eaglepipe.training.data.batch import TrainingSource


def open_caches(given: Sequence[Path | CacheShare]) -> "JoinedCaches":
    """Open complete caches that a draft can be trained from together; a path alone has weight 1.

    Raises:
        CacheError: a cache cannot be opened, or two of them are not of the same target, vocabulary and encodings.
        ConfigError: no cache is named, or none holds a sample.
    """
    if not given:
        raise ConfigError("no cache to train from: name one in train.caches, or run `eaglepipe precompute` first")
    shares = [CacheShare(folder=share) if isinstance(share, Path) else share for share in given]
    caches = [Cache.open(share.folder) for share in shares]
    choose_fetching(caches)
    for cache in caches[1:]:
        check_same_target(caches[0], cache, advice="train from one of them")
    if sum(cache.num_samples for cache in caches) == 0:
        raise ConfigError(f"{', '.join(str(share.folder) for share in shares)}: no samples to train from")
    return JoinedCaches(caches, [share.weight for share in shares])


class JoinedCaches:
    """A `TrainingSource` over caches one after the other; the first of them stands for the target of all.

    `spec` replaces that of the caches if their rows are to be decoded in another way.
    """

    def __init__(
        self,
        caches: Sequence[TrainingSource],
        weights: Sequence[float] | None = None,
        *,
        spec: ShardSpec | None = None,
    ) -> None:
        first = caches[0]
        self.spec, self.head, self.vocab = spec or first.spec, first.head, first.vocab
        self.target_config, self.start_tensors = first.target_config, first.start_tensors
        self.max_length = max(cache.max_length for cache in caches)
        self._caches = tuple(caches)
        self._weights = tuple(weights or [1.0] * len(caches))
        self._first = np.cumsum([0] + [len(cache.index.sample_ids) for cache in caches])
        self._lock = threading.Lock()

    @functools.cached_property
    def identity(self) -> str:
        """The identity of the caches, their order, and their weights unless all are 1."""
        identities = [cache.identity for cache in self._caches]
        if self._is_weighted:
            return hash_json([identities, self._weights])
        return identities[0] if len(identities) == 1 else hash_json(identities)

    @functools.cached_property
    def index(self) -> SampleIndex:
        indices = [cache.index for cache in self._caches]
        index = indices[0] if len(indices) == 1 else join_indices(indices)
        if not self._is_weighted:
            return index
        return replace(index, weights=np.repeat(self._weights, [len(part.sample_ids) for part in indices]))

    @property
    def _is_weighted(self) -> bool:
        return any(weight != 1.0 for weight in self._weights)

    def stored_parts(self, samples: Iterable[int], /) -> Iterator[StoredPart]:
        """Yield the parts of caches in object stores that hold these samples, in their order."""
        for sample in samples:
            number = int(np.searchsorted(self._first, sample, side="right")) - 1
            cache = self._caches[number]
            if isinstance(cache, StoredSource):
                yield from cache.stored_parts([sample - int(self._first[number])])

    def read(self, i: int, /) -> CachedSample:
        """Read sample `i` of all caches; raises what the cache raises."""
        cache = int(np.searchsorted(self._first, i, side="right")) - 1
        with self._lock:
            return self._caches[cache].read(i - int(self._first[cache]))
