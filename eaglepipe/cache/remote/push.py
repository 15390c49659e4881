"""Uploads of a cache that is written: plan first, a shard before its sidecar, the manifest last."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from eaglepipe.cache.manifest import MANIFEST_NAME, FileEntry
from eaglepipe.cache.remote.stored import is_stored
from eaglepipe.cache.samples.index_file import INDEX_FILE
from eaglepipe.files.hashing import FileDigest, hash_file
from eaglepipe.files.publish import publish_bytes, put_if_absent
from eaglepipe.stores.local import mirror_of
from eaglepipe.stores.room import NoRoomError
from eaglepipe.stores.transfers import each
from eaglepipe.stores.uploads import StoredFile, store_holds, upload


def put_plan(path: Path, data: bytes, *, replace: bool = False) -> bool:
    """Publish a plan, in the store first if the cache is in one; returns whether these bytes are it now.

    Args:
        replace: whatever plan is there; else the first one stays.
    """
    mirror = mirror_of(path.parent)
    if replace:
        if mirror is not None:
            mirror.store.replace_document(path.name, data)
        publish_bytes(path, data)
        return True
    if mirror is None:
        return put_if_absent(path, data)
    is_first = mirror.store.put_document(path.name, data)
    stored = data if is_first else mirror.store.read(path.name)
    if stored is not None:
        publish_bytes(path, stored)
    return is_first


def push_shard(folder: Path, entry: FileEntry, sidecar: bytes) -> None:
    """Upload a shard that is published locally, then its sidecar; nothing for a cache that is local.

    Raises:
        CacheError, UnreachableError: the store refuses, or does not answer.
        CorruptError: it keeps other bytes.
    """
    if (mirror := mirror_of(folder)) is None:
        return
    digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    name = PurePosixPath(entry.path).with_suffix(".json").as_posix()
    upload(mirror.store, entry.path, StoredFile(path=folder / entry.path, digest=digest))
    mirror.store.replace_document(name, sidecar)


def push_file(folder: Path, entry: FileEntry, path: Path) -> None:
    """Upload one file of a cache, whatever the store has in its place."""
    mirror = mirror_of(folder)
    assert mirror is not None
    digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    upload(mirror.store, entry.path, StoredFile(path=path, digest=digest), replace=True)


def push_files(folder: Path, entries: Iterable[FileEntry]) -> None:
    """Upload the small files of a cache that is about to be sealed; nothing for a cache that is local."""
    if (mirror := mirror_of(folder)) is None:
        return
    listed = mirror.store.listing()

    def push(entry: FileEntry) -> None:
        digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
        if entry.path not in listed or not store_holds(mirror.store, entry.path, digest):
            upload(mirror.store, entry.path, StoredFile(path=folder / entry.path, digest=digest))

    each(push, list(entries))


def push_index(folder: Path) -> None:
    """Upload the index of the samples, which the manifest does not list; nothing for a cache that is local."""
    if is_stored(folder):
        data = folder / INDEX_FILE
        entry = FileEntry(path=INDEX_FILE, bytes=data.stat().st_size, xxh3_128=hash_file(data))
        push_file(folder, entry, data)


def push_manifest(folder: Path, data: bytes) -> None:
    """Upload the manifest, the last file of a cache; that of another writer is replaced if it is another one."""
    if (mirror := mirror_of(folder)) is not None and not mirror.store.put_document(MANIFEST_NAME, data):
        mirror.store.replace_document(MANIFEST_NAME, data)


def forget_shard(folder: Path, shard_name: str) -> None:
    """Delete a sidecar in the store, so that its shard counts as missing."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.store.remove(PurePosixPath(shard_name).with_suffix(".json").as_posix())


def make_room(folder: Path, num_bytes: int) -> None:
    """Drop local copies that are not in use, so that a shard of that size can be written below the bound."""
    if (mirror := mirror_of(folder)) is not None:
        with suppress(NoRoomError):
            mirror.room.make_room(num_bytes)
