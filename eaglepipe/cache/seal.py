"""The last step of a cache: everything published is listed, counted and hashed into the manifest."""

import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from eaglepipe import __version__
from eaglepipe.cache.manifest import (
    ALL_LAST_HIDDEN,
    MANIFEST_NAME,
    SHARDS_FOLDER,
    FileEntry,
    Manifest,
    Plan,
    Sidecar,
    SpecDocument,
    document_bytes,
    load_document,
)
from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache.writer import sidecar_path
from eaglepipe.errors import CacheError, CorruptError, DataError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_bytes
from eaglepipe.target_head import HeadSpec

HEAD_FILE = "head.json"


def seal_cache(folder: Path, plan: Plan, spec: ShardSpec, *, max_length: int) -> Manifest:
    """Write the manifest of a cache whose shards are all published, and drop its staging folder.

    Raises:
        CacheError: a sidecar is missing or of another plan.
        DataError: the target gave a finite result for no sample at all.
    """
    sidecars = [load_document(sidecar_path(folder, shard), Sidecar) for shard in range(plan.shards)]
    for sidecar in sidecars:
        if sidecar.identity != plan.identity:
            raise CacheError(f"{folder / sidecar.shard.path}: published by another plan; remove it and its sidecar")
    manifest = _manifest(folder, plan, sidecars, spec, _spec_document(folder, spec, max_length))
    if manifest.samples == 0:
        raise DataError(f"{folder}: the target gave no finite result for any sample; is its dtype wide enough?")
    publish_bytes(folder / MANIFEST_NAME, document_bytes(manifest))
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
    return manifest


def _spec_document(folder: Path, spec: ShardSpec, max_length: int) -> SpecDocument:
    try:
        head = HeadSpec(**read_json_object(folder / HEAD_FILE))
    except TypeError as error:
        raise CorruptError(f"{folder / HEAD_FILE}: not the scale and cap of a head ({error})") from None
    fields = {name: value for name, value in asdict(spec).items() if name != "last_hidden"}  # a feature of the manifest
    return SpecDocument(max_length=max_length, **fields, **asdict(head))


def _manifest(folder: Path, plan: Plan, sidecars: list[Sidecar], shard_spec: ShardSpec, spec: SpecDocument) -> Manifest:
    shards = tuple(sidecar.shard for sidecar in sidecars)
    refused = Counter(sample.cause for sidecar in sidecars for sample in sidecar.refused)
    fixed = [path for path in sorted(folder.rglob("*")) if _is_fixed_file(folder, path)]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        features=(ALL_LAST_HIDDEN,) if shard_spec.last_hidden == "all" else (),
        name=plan.name,
        identity=plan.identity,
        created_by=f"eaglepipe {__version__}",
        complete=True,
        spec=spec,
        samples=sum(shard.samples for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        supervised_tokens=sum(shard.supervised_tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        drops={**plan.drops, **refused},
        shards=shards,
        sidecars=tuple(_file_entry(folder, sidecar_path(folder, shard)) for shard in range(plan.shards)),
        files=tuple(_file_entry(folder, path) for path in fixed),
    )


def _is_fixed_file(folder: Path, path: Path) -> bool:
    parts = path.relative_to(folder).parts
    not_fixed = (SHARDS_FOLDER, WORK_FOLDER, MANIFEST_NAME)
    return path.is_file() and parts[0] not in not_fixed and not path.name.startswith(".")


def _file_entry(folder: Path, path: Path) -> FileEntry:
    relative = path.relative_to(folder).as_posix()
    return FileEntry(path=relative, bytes=path.stat().st_size, xxh3_128=hash_file(path))
