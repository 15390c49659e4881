"""The sound samples of a damaged shard, each known by its own digest: a repair copies them and computes the others."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eaglepipe.cache.consistency import VOCAB_FILE, load_vocab
from eaglepipe.cache.manifest import FileEntry, Manifest, document_bytes, file_entry, load_document
from eaglepipe.cache.open_shards import check_schema
from eaglepipe.cache.samples.arrow_file import ArrowFile
from eaglepipe.cache.samples.content import check_content, check_structure
from eaglepipe.cache.samples.record_batch import batch_to_sample, sample_digest
from eaglepipe.cache.schema import ShardSpec, arrow_schema
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import RefusedItem, make_sidecar, shard_path, sidecar_path
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.publish import publish_bytes

_UNREADABLE = (CorruptError, pa.ArrowException, OSError, ValueError, AssertionError, KeyError)


def sound_samples(folder: Path, shard: int, spec: ShardSpec, identity: str) -> Iterator[CachedSample]:
    """Yield the samples of a shard whose digest and content are right, in their order.

    A file that is not this shard of this cache has none.
    """
    path = shard_path(folder, shard)
    try:
        file = ArrowFile(path)
        check_schema(file.schema, arrow_schema(spec, identity=identity, shard=shard), path)
    except _UNREADABLE:
        return
    is_selected = _draft_vocabulary(folder, spec)
    for position in range(file.num_batches):
        with suppress(*_UNREADABLE):
            yield _sound_sample(file, position, spec, is_selected)


def known_items(folder: Path, shard: int, spec: ShardSpec, identity: str) -> dict[str, CachedSample | RefusedItem]:
    """Return the sound samples of a shard, and those that its sidecar lists as left out, by id."""
    known: dict[str, CachedSample | RefusedItem] = {
        sample.sample_id: sample for sample in sound_samples(folder, shard, spec, identity)
    }
    try:
        sidecar = load_document(sidecar_path(folder, shard), Sidecar)
    except (CacheError, CorruptError):
        return known
    if sidecar.identity == identity and sidecar.shard.path == shard_path(folder, shard).relative_to(folder).as_posix():
        known |= {sample.sample_id: (sample.sample_id, sample.reason) for sample in sidecar.refused}
    return known


def rebuild_sidecar(folder: Path, manifest: Manifest, shard: int) -> bool:
    """Publish the sidecar of a sound shard again; False if it listed samples that were left out, and are not in it."""
    entry = manifest.shards[shard]
    samples = sound_samples(folder, shard, manifest.shard_spec(), manifest.identity)
    written = [(s.sample_id, len(s.input_ids), int(s.supervised.sum()), s.source) for s in samples]
    file = FileEntry(path=entry.path, bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    data = document_bytes(make_sidecar(file, manifest.identity, written, ()))
    if file_entry(manifest.sidecars[shard].path, data) != manifest.sidecars[shard]:
        return False
    publish_bytes(sidecar_path(folder, shard), data)
    return True


def _draft_vocabulary(folder: Path, spec: ShardSpec) -> NDArray[np.bool_] | None:
    try:
        return load_vocab(folder / VOCAB_FILE, spec).selected_token_mask.numpy()
    except CorruptError:
        return None


def _sound_sample(
    file: ArrowFile, position: int, spec: ShardSpec, is_selected: NDArray[np.bool_] | None
) -> CachedSample:
    read = file.read(position)
    batch, metadata = read.batch, read.metadata
    check_structure(batch)
    if sample_digest(batch, metadata["sample_id"], metadata["source"]) != metadata["xxh3_128"]:
        raise ValueError("digest")
    sample = batch_to_sample(batch, metadata)
    check_content(sample, spec, is_selected=is_selected)
    return sample
