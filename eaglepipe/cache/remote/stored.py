"""What the store of a cache has."""

from pathlib import Path

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, FileEntry
from eaglepipe.cache.remote.pull import pull_document
from eaglepipe.files.hashing import FileDigest
from eaglepipe.stores.local import mirror_of
from eaglepipe.stores.uploads import abort_open_uploads, store_holds


def is_stored(folder: Path) -> bool:
    """Return whether a cache is in a store, and its folder holds copies alone."""
    return mirror_of(folder) is not None


def stored_sizes(folder: Path) -> dict[str, int] | None:
    """Return the bytes of all files that the store of a folder has; None for a local cache."""
    mirror = mirror_of(folder)
    return None if mirror is None else {name: listed.num_bytes for name, listed in mirror.store.listing().items()}


def stored_digest(folder: Path, entry: FileEntry) -> str:
    """Read a file of a store whole and return its digest."""
    mirror = mirror_of(folder)
    assert mirror is not None
    return mirror.store.digest(entry.path, entry.bytes)


def stored_problem(folder: Path, entry: FileEntry) -> str | None:
    """Compare a file in the store of a folder with its entry; returns what differs."""
    mirror = mirror_of(folder)
    assert mirror is not None
    digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    return None if store_holds(mirror.store, entry.path, digest) else "lost in the store, or not as it was published"


def abort_uploads(folder: Path, *, dry_run: bool) -> list[str]:
    """End the uploads to a cache or a root that killed writers left open; returns what they were for."""
    if (mirror := mirror_of(folder)) is None:
        return []
    for name in (PLAN_NAME, MANIFEST_NAME):
        pull_document(mirror, name)
    return abort_open_uploads(mirror.store, dry_run=dry_run)
