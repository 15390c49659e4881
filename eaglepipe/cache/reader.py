"""Reading of complete caches: sizes are checked at the opening, each sample's digest when it is first touched.

A sample is read into memory of its own; handles are few and reopened by whoever forks or spawns. Views are read-only.
"""

import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from eaglepipe.cache.consistency import (
    START_FILE,
    TARGET_CONFIG_FILE,
    VOCAB_FILE,
    check_claims,
    load_target_config,
    load_vocab,
)
from eaglepipe.cache.manifest import Manifest, repair_advice
from eaglepipe.cache.open_shards import OpenShards
from eaglepipe.cache.opening import SizeChecks, check_hash, load_manifest
from eaglepipe.cache.piecewise import StoredSample
from eaglepipe.cache.remote.shards import StoredShard, drop_copy, is_away
from eaglepipe.cache.samples.arrow_file import ArrowFile
from eaglepipe.cache.samples.content import ImpossibleContentError, check_content, check_structure
from eaglepipe.cache.samples.record_batch import batch_to_sample, sample_digest
from eaglepipe.cache.samples.sidecar_index import sample_index
from eaglepipe.cache.types import CachedSample, SampleIndex
from eaglepipe.errors import CorruptError
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.files.tensors import load_tensors
from eaglepipe.stores.local import mirror_of
from eaglepipe.vocab import DraftVocab

_DAMAGE = (pa.ArrowException, OSError, ValueError, AssertionError, KeyError)


class Cache:
    """A complete cache in a local folder, which may stand for one in an object store."""

    def __init__(self, folder: Path, manifest: Manifest, index: SampleIndex) -> None:
        self.folder, self.manifest = folder, manifest
        self.spec, self.head = manifest.shard_spec(), manifest.spec.head()
        self.index = index
        self._first_sample = np.cumsum([0] + [entry.samples for entry in manifest.shards])
        self._verified = np.zeros(manifest.samples, np.bool_)
        self._stamps = np.zeros(len(manifest.shards), np.int64)
        self._shards = OpenShards(folder, manifest)

    @classmethod
    def open(cls, folder: Path, *, from_sidecars: bool = False) -> "Cache":
        """Open a complete cache.

        Args:
            from_sidecars: read every sidecar, even if they are many and there is an index of them.

        Raises:
            CacheError: no cache, an incomplete one (the missing shards named), or another schema version.
            CorruptError: a file is missing, or its size, hash or content is not what the manifest declares.
        """
        manifest = load_manifest(folder)
        sizes = SizeChecks(folder)
        for entry in manifest.all_files():
            sizes.check(entry)
        for file in manifest.files:
            if file.path != START_FILE:
                check_hash(folder, file)
        index = sample_index(folder, manifest, from_sidecars=from_sidecars)
        check_claims(folder, manifest)
        return cls(folder, manifest, index)

    def fetch_by_sample(self, by_sample: bool) -> None:
        """Choose whether shards of a stored cache are fetched sample by sample, or whole."""
        self._shards.by_sample = by_sample

    @property
    def identity(self) -> str:
        """The cache's identity, hex."""
        return self.manifest.identity

    @property
    def num_samples(self) -> int:
        """N."""
        return self.manifest.samples

    @property
    def max_length(self) -> int:
        """The longest sample that the recipe allowed, tokens."""
        return self.manifest.spec.max_length

    @functools.cached_property
    def vocab(self) -> DraftVocab:
        """The draft vocabulary, and the corpus's assistant tokens counted by target id."""
        return load_vocab(self.folder / VOCAB_FILE, self.spec)

    @functools.cached_property
    def _is_selected(self) -> NDArray[np.bool_]:
        return self.vocab.selected_token_mask.numpy()

    @functools.cached_property
    def target_config(self) -> dict[str, Any]:
        """The target's config.json."""
        return load_target_config(self.folder / TARGET_CONFIG_FILE, self.spec)

    def start_tensors(self) -> dict[str, torch.Tensor]:
        """Load the target's embeddings, final norm and head rows, on the CPU, and check them against their hash."""
        entry = next(entry for entry in self.manifest.files if entry.path == START_FILE)
        try:
            return load_tensors(self.folder / START_FILE, xxh3_128=entry.xxh3_128)
        except CorruptError as error:
            raise CorruptError(f"{error}; {repair_advice(self.folder)}") from None

    def read(self, sample: int) -> CachedSample:
        """Return sample number `sample`; views of the bytes that were checked, to be copied before any computation.

        Raises:
            CorruptError: naming the shard and the sample, at the first touch of a sample that was altered.
        EaglepipeError, ResourceError: the system does not let the shard be read.
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        shard = int(np.searchsorted(self._first_sample, sample, side="right")) - 1
        position = sample - int(self._first_sample[shard])
        path = self.folder / self.manifest.shards[shard].path
        location = f"{path}, sample {position} ({self.index.sample_ids[sample]!r})"
        try:
            with explained_read_errors(path):
                decoded = self._decode_stored(shard, position, sample, location)
        except ImpossibleContentError as error:
            raise CorruptError(f"{location}: {error}; {repair_advice(self.folder)}") from None
        except _DAMAGE as error:
            raise CorruptError(
                f"{location}: unreadable ({type(error).__name__}: {error}); {repair_advice(self.folder)}"
            ) from error
        self._verified[sample] = True
        return decoded

    def stored_parts(self, samples: Iterable[int]) -> Iterator[StoredShard | StoredSample]:
        """Yield what is fetched for these samples, in their order, if the cache is in an object store."""
        if (bound := self._local_bound) is None:
            return
        for sample in samples:
            shard = int(np.searchsorted(self._first_sample, sample, side="right")) - 1
            entry = self.manifest.shards[shard]
            if not self._shards.by_sample:
                yield StoredShard(folder=self.folder, entry=entry, bound_bytes=bound)
                continue
            share = float(self.index.num_tokens[sample]) / max(1, entry.tokens)
            yield StoredSample(
                folder=self.folder,
                entry=entry,
                position=sample - int(self._first_sample[shard]),
                num_bytes=int(share * entry.bytes),
                bound_bytes=bound,
            )

    @functools.cached_property
    def _local_bound(self) -> int | None:
        mirror = mirror_of(self.folder)
        return None if mirror is None else mirror.room.bytes

    def check_shards(self) -> None:
        """Compare the footers of shards with the spec: columns, identity, number of samples.

        Raises:
            CorruptError: naming the first shard that does not fit.
        """
        for shard, entry in enumerate(self.manifest.shards):
            path = self.folder / entry.path
            if is_away(self.folder, entry):  # checked when it comes
                continue
            try:
                with explained_read_errors(path):
                    self._shards.open(shard)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise CorruptError(
                    f"{path}: unreadable ({type(error).__name__}: {error}); {repair_advice(self.folder)}"
                ) from error

    def _decode_stored(self, shard: int, position: int, sample: int, location: str) -> CachedSample:
        """Decode a sample; from a fresh copy of its shard if the local copy of a store's is damaged."""
        try:
            return self._decode(shard, position, sample, location)
        except (*_DAMAGE, CorruptError):
            self._shards.close(shard)
            if not drop_copy(self.folder, self.manifest.shards[shard]):
                raise
        return self._decode(shard, position, sample, location)

    def _decode(self, shard: int, position: int, sample: int, location: str) -> CachedSample:
        file = self._shards.file(shard, position)
        self._forget_if_changed(shard, file)
        read = file.read(position)
        batch, metadata = read.batch, read.metadata
        if self._verified[sample]:
            return batch_to_sample(batch, metadata)
        if position == 0 and read.is_compressed:
            warnings.warn(f"{location}: compressed, so that reading it is slow", stacklevel=2)
        check_structure(batch)
        index = self.index
        if batch.num_rows != index.num_tokens[sample] or metadata["sample_id"] != index.sample_ids[sample]:
            raise CorruptError(f"{location}: not the sample that the sidecar declares")
        if sample_digest(batch, metadata["sample_id"], metadata["source"]) != metadata["xxh3_128"]:
            raise CorruptError(f"{location}: its bytes do not match their checksum; {repair_advice(self.folder)}")
        decoded = batch_to_sample(batch, metadata)
        if int(decoded.supervised.sum()) != index.num_supervised[sample]:
            raise CorruptError(f"{location}: not as many supervised tokens as the sidecar declares")
        check_content(decoded, self.spec, is_selected=self._is_selected)
        return decoded

    def _forget_if_changed(self, shard: int, file: ArrowFile) -> None:
        """Check every digest again in a shard that was written to since."""
        stamp = hash(file.stamp)
        if self._stamps[shard] != stamp:
            self._verified[self._first_sample[shard] : self._first_sample[shard + 1]] = False
            self._stamps[shard] = stamp


def choose_fetching(caches: Sequence[Cache]) -> None:
    """Let stored caches that are read in random order be fetched by sample if they do not fit the bound together."""
    stored = [(cache, mirror) for cache in caches if (mirror := mirror_of(cache.folder)) is not None]
    total = sum(entry.bytes for cache, _ in stored for entry in cache.manifest.all_files())
    for cache, mirror in stored:
        cache.fetch_by_sample(total > mirror.room.bytes)
