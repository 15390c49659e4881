"""The index of a cache's samples: from its sidecars, or from the file that repeats them if those are many."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eaglepipe.cache.manifest import FileEntry, Manifest, ShardEntry, repair_advice
from eaglepipe.cache.samples.index_file import INDEX_FILE, index_key, publish_index, read_index
from eaglepipe.cache.samples.sample_ids import SampleIds
from eaglepipe.cache.sidecar import load_sealed_sidecar
from eaglepipe.cache.types import SampleIndex, join_indices
from eaglepipe.errors import CorruptError

FEW_BYTES = 8 * 2**20
"""Sidecars of up to so many bytes together are read, every byte, whenever their cache is opened."""
_LEAST_TOKEN_BYTES = 4  # its id; compressed shards, which nobody writes here, may declare fewer


def sample_index(folder: Path, manifest: Manifest, *, from_sidecars: bool = False) -> SampleIndex:
    """Return the index of all samples, as far as the bytes of the shards can hold them.

    Args:
        from_sidecars: read the sidecars even if they are many.

    Raises:
        CorruptError: a sidecar is not the listed one, or declares what its shard cannot hold.
    """
    is_large = sum(entry.bytes for entry in manifest.sidecars) > FEW_BYTES
    if is_large and not from_sidecars and (stored := stored_index(folder / INDEX_FILE, manifest)) is not None:
        for entry in manifest.shards:
            _check_bytes(folder, entry)
        return stored
    return join_indices(_sidecar_indices(folder, manifest))


def stored_index(path: Path, manifest: Manifest) -> SampleIndex | None:
    """Return the index in a file, if it is that of a manifest's shards; else None."""
    index = read_index(path, _key(manifest))
    if index is None or len(index.num_tokens) != manifest.samples:
        return None
    ends = np.cumsum([entry.samples for entry in manifest.shards], dtype=np.int64)
    tokens = _sums(index.num_tokens, ends), [entry.tokens for entry in manifest.shards]
    supervised = _sums(index.num_supervised, ends), [entry.supervised_tokens for entry in manifest.shards]
    return index if tokens[0] == tokens[1] and supervised[0] == supervised[1] else None


def write_index(folder: Path, manifest: Manifest) -> None:
    """Publish the index of a cache whose manifest is known, from its sidecars."""
    publish_index(folder / INDEX_FILE, join_indices(_sidecar_indices(folder, manifest)), _key(manifest))


def _key(manifest: Manifest) -> str:
    return index_key(manifest.identity, [entry.xxh3_128 for entry in manifest.sidecars])


def _sums(counts: np.ndarray, ends: np.ndarray) -> list[int]:
    """Return the sum of each shard's counts."""
    parts = np.split(counts, ends[:-1])
    return [int(part.sum(dtype=np.int64)) for part in parts]


def _sidecar_indices(folder: Path, manifest: Manifest) -> Iterator[SampleIndex]:
    for entry, listed in zip(manifest.shards, manifest.sidecars, strict=True):
        yield _shard_index(folder, manifest, entry, listed)


def _check_bytes(folder: Path, entry: ShardEntry) -> None:
    if entry.tokens * _LEAST_TOKEN_BYTES > entry.bytes or entry.supervised_tokens > entry.tokens:
        raise CorruptError(
            f"{folder / entry.path}: {entry.tokens:,} tokens, {entry.supervised_tokens:,} of them supervised, are "
            f"declared, and its {entry.bytes:,} bytes cannot hold them; {repair_advice(folder)}"
        )


def _shard_index(folder: Path, manifest: Manifest, entry: ShardEntry, listed: FileEntry) -> SampleIndex:
    """Read what the sidecar of a shard says about its samples."""
    sidecar = load_sealed_sidecar(folder / listed.path, listed)
    if sidecar.shard != entry or sidecar.identity != manifest.identity:
        raise CorruptError(
            f"{folder / entry.path}: its sidecar and the manifest disagree about it; {repair_advice(folder)}"
        )
    _check_bytes(folder, entry)
    index = sidecar.index
    return SampleIndex(
        sample_ids=SampleIds.of(index.sample_ids),
        num_tokens=np.array(index.num_tokens, np.int64).astype(np.int32),
        num_supervised=np.array(index.num_supervised, np.int64).astype(np.int32),
        sources=index.sources,
        source_of=np.array(index.source_of, np.int32),
    )
