"""Derivation of a cache from other caches, without a target: plan first, shard by shard, manifest last.

Stopped anywhere and run again, it redoes only the unpublished shards; everything read is checked against its digest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from eaglepipe.cache.clean import tidy_cache
from eaglepipe.cache.fixed_files import publish_files
from eaglepipe.cache.identity import DERIVED_KEY
from eaglepipe.cache.manifest import (
    MANIFEST_NAME,
    PLAN_NAME,
    REPORT_FILE,
    FileEntry,
    Manifest,
    Plan,
    document_bytes,
    load_document,
)
from eaglepipe.cache.opening import load_manifest, load_plan
from eaglepipe.cache.published import missing_shards, read_published
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.remote.names import LOCAL_NAMES
from eaglepipe.cache.remote.push import forget_shard, put_plan
from eaglepipe.cache.remote.stored import is_stored
from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec
from eaglepipe.cache.seal import UnsoundError, forget_unsound, seal_cache
from eaglepipe.cache.sidecar import RefusedSample, Sidecar
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import RefusedItem, ShardWriter, sidecar_path
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.json_object import diff_fields
from eaglepipe.files.leftovers import is_temporary, leftovers, remove_abandoned
from eaglepipe.files.lock import FOLDER_LOCK, write_lock
from eaglepipe.files.publish import check_free_bytes, json_bytes, publish_bytes, publish_copy
from eaglepipe.progress import ProgressLine

_ORIGIN_FILE = f"{WORK_FOLDER}/derived.json"


@dataclass(frozen=True, kw_only=True)
class ShardOrigin:
    """The source of one new shard's samples, and those that the old shard had refused already."""

    cache: Cache
    samples: tuple[int, ...]
    refused: tuple[RefusedSample, ...]


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """A planned cache: shard i holds the samples of `origins[i]`; `files` are the rest, as bytes or to be copied."""

    folder: Path
    plan: Plan
    spec: ShardSpec
    max_length: int
    origins: tuple[ShardOrigin, ...]
    files: Mapping[str, bytes | tuple[Path, FileEntry]]
    estimated_bytes: int


Convert = Callable[[ShardOrigin, int], Iterator[CachedSample | RefusedItem]]
"""Yields the samples of a new shard, by its number; each as stored, or refused."""


def derived_plan(
    folder: Path,
    first: Cache,
    *,
    fields: dict[str, Any],
    declared: dict[str, Any],
    origin: dict[str, Any],
    origins: Sequence[ShardOrigin],
    drops: Mapping[str, int],
) -> Plan:
    """Return the plan of a cache made from others; its identity covers theirs and the change.

    Args:
        fields: target, data, vocab and cache of the new identity.
        declared: the same as a recipe declares them. No recipe finds a derived cache by them: `train.caches` names it.
        origin: JSON of the identities and the change.
    """
    identity_fields = {**fields, "schema_version": SCHEMA_VERSION, DERIVED_KEY: origin}
    index = [(part.cache.index, list(part.samples)) for part in origins]
    data = json_bytes(origin)
    return Plan(
        schema_version=SCHEMA_VERSION,
        name=folder.name,
        identity=hash_json(identity_fields),
        identity_fields=identity_fields,
        declared={**declared, DERIVED_KEY: origin},
        batch_tokens=load_plan(first.folder).batch_tokens,
        samples=sum(len(samples) for _, samples in index),
        tokens=sum(int(part.num_tokens[samples].sum()) for part, samples in index),
        supervised_tokens=sum(int(part.num_supervised[samples].sum()) for part, samples in index),
        shards=len(origins),
        drops={reason: count for reason, count in sorted(drops.items()) if count},
        staging=FileEntry(path=_ORIGIN_FILE, bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data)),
    )


def shard_origins(cache: Cache) -> list[ShardOrigin]:
    """Return the origins of every sample of a cache, shard by shard."""
    origins, first = [], 0
    for shard, entry in zip(cache.manifest.shards, cache.manifest.sidecars, strict=True):
        refused = load_document(cache.folder / entry.path, Sidecar).refused
        samples = tuple(range(first, first + shard.samples))
        origins.append(ShardOrigin(cache=cache, samples=samples, refused=refused))
        first += shard.samples
    return origins


def check_free_for(folder: Path, sources: Sequence[Path]) -> None:
    """Refuse an output folder that is one of the sources, or holds other files.

    Raises:
        CacheError: before anything is written.
    """
    for source in sources:
        if folder.resolve() == source.resolve():
            raise CacheError(f"{folder}: a cache cannot be made from itself; name another folder")
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder}: exists and is not a folder")
    if folder.is_dir() and not (folder / PLAN_NAME).exists():
        others = (path for path in folder.iterdir() if not is_temporary(path) and path.name not in LOCAL_NAMES)
        other_files = sorted(path.name for path in others if path.name != WORK_FOLDER)
        if other_files:
            raise CacheError(f"{folder}: holds other files ({', '.join(other_files[:4])}); name a new or empty folder")


def existing_manifest(folder: Path, plan: Plan) -> Manifest | None:
    """Return the manifest of the same cache if it is complete already; leftovers of its writer are removed.

    Raises:
        CacheError: the folder holds another cache; lists the fields that differ.
    """
    if not (folder / PLAN_NAME).exists():
        return None
    try:
        existing = load_plan(folder)
    except CorruptError:
        if (folder / MANIFEST_NAME).exists():
            raise
        return None  # the plan of an incomplete cache is made again
    if existing.identity != plan.identity:
        lines = "\n  ".join(diff_fields(existing.identity_fields, plan.identity_fields))
        raise CacheError(f"{folder} holds another cache; name a new folder. Differences:\n  {lines}")
    if not (folder / MANIFEST_NAME).exists():
        return None
    tidy_cache(folder)
    return load_manifest(folder)


def write_derived(
    derivation: Derivation,
    convert: Convert,
    *,
    verb: str,
    report: Callable[[], bytes] | None = None,
    is_reported: Callable[[int], bool] = lambda _: True,
) -> Manifest:
    """Publish the missing shards of a derived cache, and seal it.

    Args:
        report: returns the bytes of `recode.json`.
        is_reported: whether a published shard's part of the report is there; the shard is redone otherwise.

    Raises:
        CorruptError: a sample or a file of a source is damaged; nothing made from it stays.
        ResourceError: the disk is too small.
        ConfigError: another process is writing the folder.
    """
    if (done := existing_manifest(derivation.folder, derivation.plan)) is not None:
        return done
    with write_lock(derivation.folder / WORK_FOLDER / FOLDER_LOCK, derivation.folder):
        return _write_locked(derivation, convert, verb=verb, report=report, is_reported=is_reported)


def _write_locked(
    derivation: Derivation,
    convert: Convert,
    *,
    verb: str,
    report: Callable[[], bytes] | None,
    is_reported: Callable[[int], bool],
) -> Manifest:
    folder, plan = derivation.folder, derivation.plan
    if (done := existing_manifest(folder, plan)) is not None:
        return done
    remove_abandoned(leftovers(folder))
    put_plan(folder / PLAN_NAME, document_bytes(plan), replace=True)
    publish_bytes(folder / _ORIGIN_FILE, json_bytes(plan.identity_fields[DERIVED_KEY]))
    redone = False
    while True:
        fixed = _publish_files(derivation)
        for shard in range(plan.shards):
            if not is_reported(shard) or not _holds_its_samples(derivation, shard):
                _forget(folder, shard)
        _write_missing(derivation, convert, verb)
        if report is not None:
            fixed += publish_files(folder, {REPORT_FILE: report()})
        try:
            return seal_cache(folder, plan, derivation.spec, max_length=derivation.max_length, fixed=fixed)
        except UnsoundError as error:
            if redone:
                raise CorruptError(f"{error}, even after they were made again; check this disk and memory") from None
            redone = True
            forget_unsound(folder, plan, error)


def _forget(folder: Path, shard: int) -> None:
    path = sidecar_path(folder, shard)
    if path.exists():
        forget_shard(folder, path.relative_to(folder).as_posix())
        path.unlink()


def _holds_its_samples(derivation: Derivation, shard: int) -> bool:
    """Compare a published shard with its origin, which may have been computed anew in another order since."""
    sidecar, origin = read_published(derivation.folder, derivation.plan, shard), derivation.origins[shard]
    if not isinstance(sidecar, Sidecar):
        return False
    refused = {sample.sample_id for sample in sidecar.refused}
    ids = (origin.cache.index.sample_ids[number] for number in origin.samples)
    return sidecar.index.sample_ids == tuple(sample_id for sample_id in ids if sample_id not in refused)


def _publish_files(derivation: Derivation) -> tuple[FileEntry, ...]:
    """Publish the files besides plan and shards; returns their entries."""
    entries = publish_files(
        derivation.folder, {name: data for name, data in derivation.files.items() if isinstance(data, bytes)}
    )
    for name, content in derivation.files.items():
        if not isinstance(content, bytes):
            source, entry = content
            publish_copy(source / entry.path, derivation.folder / name, digest=entry.xxh3_128)
            entries += (entry.model_copy(update={"path": name}),)
    return entries


def _write_missing(derivation: Derivation, convert: Convert, verb: str) -> None:
    folder, plan = derivation.folder, derivation.plan
    missing = missing_shards(folder, plan)
    missing_bytes = derivation.estimated_bytes * len(missing) / max(1, plan.shards)
    if not is_stored(folder):
        check_free_bytes(folder, missing_bytes, advice="name a folder on a larger disk")
    with ProgressLine(verb, total=plan.shards, unit="shard", initial=plan.shards - len(missing)) as progress:
        for shard in missing:
            _write_shard(derivation, shard, convert)
            progress.update(1)


def _write_shard(derivation: Derivation, shard: int, convert: Convert) -> None:
    origin = derivation.origins[shard]
    writer = ShardWriter(derivation.folder, shard, spec=derivation.spec, identity=derivation.plan.identity)
    try:
        for sample in origin.refused:
            writer.refuse(sample.sample_id, sample.reason)
        for item in convert(origin, shard):
            writer.add(item)
        writer.finish()
    finally:
        writer.abort()


def copied_files(cache: Cache, *, without: Sequence[str] = ()) -> dict[str, bytes | tuple[Path, FileEntry]]:
    """Return the files of a cache besides plan and shards, to be copied with their digests checked."""
    excluded = {PLAN_NAME, *without}
    return {entry.path: (cache.folder, entry) for entry in cache.manifest.files if entry.path not in excluded}


def result_json(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the report of `cache merge` and `cache recode` about the cache that they made."""
    counts = ("identity", "samples", "tokens", "supervised_tokens")
    return {
        "folder": str(folder),
        **{name: getattr(manifest, name) for name in counts},
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "bytes_per_token": round(manifest.bytes_per_token, 3),
        "drops": dict(manifest.drops),
    }
