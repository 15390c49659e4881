"""The sound samples of a damaged shard, each known by its own digest: a repair copies them and computes the others."""

from pathlib import Path

import pyarrow as pa

from eaglepipe.cache.arrow_file import ArrowFile
from eaglepipe.cache.consistency import check_ids
from eaglepipe.cache.manifest import FileEntry, Manifest, Sidecar, document_bytes, file_entry, load_document
from eaglepipe.cache.reader import check_schema
from eaglepipe.cache.record_batch import batch_to_sample, sample_digest
from eaglepipe.cache.schema import ShardSpec, arrow_schema
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import RefusedItem, make_sidecar, shard_path, sidecar_path
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.publish import publish_bytes

_UNREADABLE = (CorruptError, pa.ArrowException, OSError, ValueError, AssertionError, KeyError)


def sound_samples(folder: Path, shard: int, spec: ShardSpec, identity: str) -> dict[str, CachedSample]:
    """Return the samples of a shard whose digests are right, by id in their order, all in memory.

    A file that is not this shard of this cache has none.
    """
    path = shard_path(folder, shard)
    try:
        file = ArrowFile(path)
        check_schema(file.schema, arrow_schema(spec, identity=identity, shard=shard), path)
    except _UNREADABLE:
        return {}
    sound: dict[str, CachedSample] = {}
    for position in range(file.num_batches):
        try:
            sample = _sound_sample(file, position, spec)
        except _UNREADABLE:
            continue
        sound[sample.sample_id] = sample
    return sound


def known_items(folder: Path, shard: int, spec: ShardSpec, identity: str) -> dict[str, CachedSample | RefusedItem]:
    """Return the sound samples of a shard, and those that its sidecar lists as left out, by id."""
    known: dict[str, CachedSample | RefusedItem] = {**sound_samples(folder, shard, spec, identity)}
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
    samples = sound_samples(folder, shard, manifest.shard_spec(), manifest.identity).values()
    written = [(s.sample_id, len(s.input_ids), int(s.supervised.sum()), s.source) for s in samples]
    file = FileEntry(path=entry.path, bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    data = document_bytes(make_sidecar(file, manifest.identity, written, ()))
    if file_entry(manifest.sidecars[shard].path, data) != manifest.sidecars[shard]:
        return False
    publish_bytes(sidecar_path(folder, shard), data)
    return True


def _sound_sample(file: ArrowFile, position: int, spec: ShardSpec) -> CachedSample:
    read = file.read(position)
    batch, metadata = read.batch, read.metadata
    batch.validate(full=True)
    if sample_digest(batch, metadata["sample_id"], metadata["source"]) != metadata["xxh3_128"]:
        raise ValueError("digest")
    sample = batch_to_sample(batch, metadata)
    check_ids(sample, spec, metadata["sample_id"])
    return sample
