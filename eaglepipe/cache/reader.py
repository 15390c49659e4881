"""Reads a complete cache: sizes are checked when it opens, each sample's digest when it is first touched.

Shards are mapped, never loaded; handles are few and reopened by whoever forks or spawns. Views are read-only.
"""

import functools
import warnings
from collections import OrderedDict
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
    check_ids,
    load_target_config,
    load_vocab,
)
from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, FileEntry, Manifest, Plan, Sidecar, load_document
from eaglepipe.cache.mapped import MappedArrow
from eaglepipe.cache.record_batch import batch_to_sample, sample_digest
from eaglepipe.cache.schema import arrow_schema
from eaglepipe.cache.types import CachedSample, SampleIndex
from eaglepipe.cache.writer import sidecar_path
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.tensors import load_tensors
from eaglepipe.vocab import DraftVocab

REPORT_FILE = "recode.json"
MAX_OPEN_SHARDS = 32
DERIVED_KEY = "derived"
"""In a plan's identity fields: what was done to which caches, where a cache was made from others."""
_PRECOMPUTE = "`eaglepipe precompute` with its recipe"


class Cache:
    """A complete cache on a local file system."""

    def __init__(self, folder: Path, manifest: Manifest, sidecars: list[Sidecar]) -> None:
        self.folder, self.manifest = folder, manifest
        self.spec, self.head = manifest.shard_spec(), manifest.spec.head()
        self.index = _join_indices(sidecars)
        self._first_sample = np.cumsum([0] + [entry.samples for entry in manifest.shards])
        self._verified = np.zeros(manifest.samples, np.bool_)
        self._readers: OrderedDict[int, MappedArrow] = OrderedDict()

    @classmethod
    def open(cls, folder: Path) -> "Cache":
        """Open a complete cache.

        Raises:
            CacheError: no cache, an incomplete one (says what is missing), or another schema version.
            CorruptError: a file is missing, has another size, or a metadata file another hash, than the manifest says;
                or they hold something else than it says.
        """
        manifest = load_manifest(folder)
        for entry in manifest.all_files():
            check_size(folder, entry)
        for entry in (*manifest.sidecars, *manifest.files):
            if entry.path != START_FILE:
                check_hash(folder, entry)
        sidecars = [load_document(folder / entry.path, Sidecar) for entry in manifest.sidecars]
        for entry, sidecar in zip(manifest.shards, sidecars, strict=True):
            if sidecar.shard != entry or sidecar.identity != manifest.identity:
                raise CorruptError(f"{folder / entry.path}: its sidecar and the manifest disagree about it")
        check_claims(folder, manifest)
        return cls(folder, manifest, sidecars)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict()}

    @property
    def identity(self) -> str:
        return self.manifest.identity

    @property
    def num_samples(self) -> int:
        return self.manifest.samples

    @property
    def max_length(self) -> int:
        return self.manifest.spec.max_length

    @functools.cached_property
    def vocab(self) -> DraftVocab:
        """The draft vocabulary, with the corpus's assistant tokens counted by target id."""
        return load_vocab(self.folder / VOCAB_FILE, self.spec)

    @functools.cached_property
    def target_config(self) -> dict[str, Any]:
        """The target's config.json."""
        return load_target_config(self.folder / TARGET_CONFIG_FILE, self.spec)

    def start_tensors(self) -> dict[str, torch.Tensor]:
        """The target's embeddings, final norm and head rows that a draft starts from; checked against their hash."""
        entry = next(entry for entry in self.manifest.files if entry.path == START_FILE)
        check_hash(self.folder, entry)
        return load_tensors(self.folder / START_FILE)

    def read(self, sample: int) -> CachedSample:
        """Sample number `sample`; views into the mapped shard, to be copied before any computation.

        Raises:
            CorruptError: naming the shard and the sample, at the first touch of a sample that was altered.
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"sample {sample} of {self.num_samples}")
        shard = int(np.searchsorted(self._first_sample, sample, side="right")) - 1
        position = sample - int(self._first_sample[shard])
        where = f"{self.folder / self.manifest.shards[shard].path}, sample {position}"
        where += f" ({self.index.sample_ids[sample]!r})"
        try:
            decoded = self._decode(shard, position, sample, where)
        except (pa.ArrowException, OSError, ValueError, AssertionError, KeyError) as error:
            raise CorruptError(
                f"{where}: unreadable ({type(error).__name__}: {error}); recompute this shard"
            ) from error
        self._verified[sample] = True
        return decoded

    def check_shard(self, shard: int) -> None:
        """Compare a shard's footer with the spec: columns, identity, number of samples.

        Raises:
            CorruptError: naming the shard.
        """
        try:
            self._open_shard(shard)
        except (pa.ArrowException, OSError, ValueError) as error:
            path = self.folder / self.manifest.shards[shard].path
            raise CorruptError(f"{path}: unreadable ({type(error).__name__}: {error}); recompute it") from error

    def _decode(self, shard: int, position: int, sample: int, where: str) -> CachedSample:
        mapped = self._reader(shard)
        mapped.check_size()
        with_metadata = mapped.reader.get_batch_with_custom_metadata(position)
        batch = with_metadata.batch
        mapped.touched(batch.nbytes)
        metadata = {key.decode(): value.decode() for key, value in with_metadata.custom_metadata.items()}
        if self._verified[sample]:
            return batch_to_sample(batch, metadata)
        if position == 0 and mapped.copies(batch):
            warnings.warn(f"{where}: compressed, so that reading it copies and is slow", stacklevel=2)
        self._check(batch, metadata, sample, where)
        decoded = batch_to_sample(batch, metadata)
        check_ids(decoded, self.spec, where)
        return decoded

    def _check(self, batch: pa.RecordBatch, metadata: dict[str, str], sample: int, where: str) -> None:
        batch.validate(full=True)
        index = self.index
        if batch.num_rows != index.num_tokens[sample] or metadata["sample_id"] != index.sample_ids[sample]:
            raise CorruptError(f"{where}: holds another sample than the sidecar says")
        if sample_digest(batch, metadata["sample_id"], metadata["source"]) != metadata["xxh3_128"]:
            raise CorruptError(f"{where}: its bytes do not match their checksum; recompute this shard")

    def _reader(self, shard: int) -> MappedArrow:
        reader = self._readers.get(shard)
        if reader is None:
            reader = self._open_shard(shard)
            self._readers[shard] = reader
            if len(self._readers) > MAX_OPEN_SHARDS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(shard)
        return reader

    def _open_shard(self, shard: int) -> MappedArrow:
        entry = self.manifest.shards[shard]
        check_size(self.folder, entry)
        mapped = MappedArrow(self.folder / entry.path)
        reader = mapped.reader
        expected = arrow_schema(self.spec, identity=self.identity, shard=int(Path(entry.path).stem))
        check_schema(reader.schema, expected, self.folder / entry.path)
        if reader.num_record_batches != entry.samples:
            raise CorruptError(f"{self.folder / entry.path}: {reader.num_record_batches} samples, not {entry.samples}")
        return mapped


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a complete cache; an incomplete one is told apart and says what is missing."""
    if (folder / MANIFEST_NAME).exists():
        manifest = load_document(folder / MANIFEST_NAME, Manifest)
        manifest.shard_spec()
        return manifest
    if (folder / PLAN_NAME).exists():
        plan = load_document(folder / PLAN_NAME, Plan)
        missing = missing_shards(folder, plan)
        what = (
            f"shards {', '.join(map(str, missing[:8]))}{' …' * (len(missing) > 8)}" if missing else "only its manifest"
        )
        command = "the command that made it again" if DERIVED_KEY in plan.identity_fields else _PRECOMPUTE
        raise CacheError(
            f"{folder}: incomplete, {plan.shards - len(missing)} of {plan.shards} shards done; missing: {what}. "
            f"Run {command} to finish it"
        )
    raise CacheError(f"{folder}: not a cache (neither {MANIFEST_NAME} nor {PLAN_NAME})")


def missing_shards(folder: Path, plan: Plan) -> list[int]:
    """Numbers of the shards that are not published yet."""
    return [shard for shard in range(plan.shards) if not sidecar_path(folder, shard).exists()]


def check_size(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.path
    if not path.is_file():
        raise CorruptError(f"{path}: listed in the manifest, but missing")
    if folder.resolve() not in path.resolve().parents:
        raise CorruptError(f"{path}: leads out of the cache's folder")
    if path.stat().st_size != entry.bytes:
        raise CorruptError(f"{path}: {path.stat().st_size:,} bytes, published with {entry.bytes:,}")


def check_hash(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.path
    if hash_file(path) != entry.xxh3_128:
        raise CorruptError(f"{path}: its bytes do not match the manifest's checksum")


def check_schema(found: pa.Schema, expected: pa.Schema, path: Path) -> None:
    """Refuse a shard whose columns or identity are not this cache's, naming the field."""
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise CorruptError(f"{path}: column {field.name!r} is missing")
        if not found.field(index).equals(field, check_metadata=True):
            raise CorruptError(f"{path}: column {field.name!r} is {found.field(index)}, not {field}")
    if found.names != expected.names:
        raise CorruptError(f"{path}: columns {found.names}, not {expected.names}")
    if found.metadata != expected.metadata:
        raise CorruptError(f"{path}: belongs to another cache or is another shard: {found.metadata}")


def _join_indices(sidecars: list[Sidecar]) -> SampleIndex:
    sources = tuple(dict.fromkeys(source for sidecar in sidecars for source in sidecar.index.sources))
    source_of: list[NDArray[np.int16]] = []
    for sidecar in sidecars:
        local = np.array([sources.index(source) for source in sidecar.index.sources], np.int16)
        source_of.append(local[np.array(sidecar.index.source_of, np.int64)])
    return SampleIndex(
        sample_ids=tuple(sample_id for sidecar in sidecars for sample_id in sidecar.index.sample_ids),
        num_tokens=_concatenate([sidecar.index.num_tokens for sidecar in sidecars]),
        num_supervised=_concatenate([sidecar.index.num_supervised for sidecar in sidecars]),
        sources=sources,
        source_of=np.concatenate(source_of) if source_of else np.empty(0, np.int16),
    )


def _concatenate(columns: list[tuple[int, ...]]) -> NDArray[np.int32]:
    return np.concatenate([np.array(column, np.int32) for column in columns]) if columns else np.empty(0, np.int32)
