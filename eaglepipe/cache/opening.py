"""Plan and manifest of a cache as they are opened: of one identity, and held against the files that they list."""

import functools
from pathlib import Path

from eaglepipe.cache.identity import check_manifest, check_plan
from eaglepipe.cache.manifest import (
    MANIFEST_NAME,
    PLAN_NAME,
    FileEntry,
    Manifest,
    Plan,
    load_document,
    repair_advice,
)
from eaglepipe.cache.published import finishing_command, missing_shards
from eaglepipe.cache.remote.shards import is_away
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.bounds import FolderBounds
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.system_errors import explained_read_errors


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a complete cache.

    Raises:
        CacheError: no cache; an incomplete one, the missing shards named; or files of two caches.
        CorruptError: the manifest or plan is damaged, or was changed.
    """
    if (folder / MANIFEST_NAME).exists():
        manifest = read_manifest(folder)
        if not (folder / PLAN_NAME).exists():
            raise CorruptError(f"{folder / PLAN_NAME}: part of every cache, but missing; {repair_advice(folder)}")
        plan = load_plan(folder)
        check_plan(folder, plan)
        check_manifest(folder, plan, manifest)
        return manifest
    plan = load_plan(folder)
    missing = missing_shards(folder, plan)
    numbers = ", ".join(map(str, missing[:8])) + " …" * (len(missing) > 8)
    raise CacheError(
        f"{folder}: incomplete, {plan.shards - len(missing)} of {plan.shards} shards done; missing: "
        f"{f'shards {numbers}' if missing else 'only its manifest'}. Run {finishing_command(plan)} to finish it"
    )


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest alone, whatever the plan beside it.

    Raises:
        CacheError: there is none, or it is of another schema version.
        CorruptError: it is damaged.
    """
    path = folder / MANIFEST_NAME
    manifest = _parsed(path, hash_file(path)) if path.is_file() else load_document(path, Manifest)
    manifest.shard_spec()
    return manifest


@functools.lru_cache(maxsize=2)
def _parsed(path: Path, digest: str) -> Manifest:
    """Parse a manifest; a command looks at the same bytes several times, and those of many shards take seconds."""
    return load_document(path, Manifest)


def load_plan(folder: Path) -> Plan:
    """Read the plan of a cache, complete or not.

    Raises:
        CacheError: no cache.
        CorruptError: the plan is damaged.
    """
    if not (folder / PLAN_NAME).exists() and not (folder / MANIFEST_NAME).exists():
        raise CacheError(f"{folder}: not a cache (neither {MANIFEST_NAME} nor {PLAN_NAME})")
    return load_document(folder / PLAN_NAME, Plan)


class SizeChecks:
    """Comparison of the files of a cache with their listed sizes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._bounds = folder, FolderBounds(folder)

    def check(self, entry: FileEntry) -> None:
        """Raise CorruptError if a file is missing, of another size, or out of the folder."""
        path = self._folder / entry.path
        with explained_read_errors(path):
            num_bytes = self._bounds.size(path)
            if num_bytes is None:
                if is_away(self._folder, entry):
                    return
                raise CorruptError(f"{path}: listed in the manifest, but missing; {repair_advice(self._folder)}")
            if not self._bounds.holds(path):
                raise CorruptError(f"{path}: leads out of the cache's folder")
        if num_bytes != entry.bytes:
            raise CorruptError(
                f"{path}: {num_bytes:,} bytes, published with {entry.bytes:,}; {repair_advice(self._folder)}"
            )


def check_size(folder: Path, entry: FileEntry) -> None:
    """Check one file, as `SizeChecks` does."""
    SizeChecks(folder).check(entry)


def check_hash(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.path
    if hash_file(path) != entry.xxh3_128:
        raise CorruptError(f"{path}: its bytes do not match the manifest's checksum; {repair_advice(folder)}")
