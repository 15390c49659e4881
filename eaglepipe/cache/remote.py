"""Caches in object stores, each seen through its local folder (`stores.local`), which is read as any cache's.

The local folder has the small files of the cache. A shard is there while it is used; its sidecar is there if, and only
if, the store has both. Publishing keeps the order of a disk: plan first, shard before sidecar, manifest last.

A store keeps less than a disk does:

- Names appear whole or not at all, as by a rename, so a kill anywhere still leaves a cache that is complete or lists
  what is missing. The open shard is computed again, also if it was killed while it was uploaded.
- S3 creates a name for one writer only, which serves plan and manifest; in the other stores the last writer of the same
  name wins. Two writers of one identity have the same bytes on one kind of device, and sealing compares every shard
  with its sidecar, so that a mixture of two is made again and never sealed.
- There are no locks. Processes of one machine share the locks of the local folder; those of several machines take
  shares (`--workers i/n`). Without shares no data is lost, but a shard may be computed twice.
- The tokenised corpus and the answers of `data.generate` stay on the machine that made them until the cache is sealed.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from filelock import FileLock

from eaglepipe.cache.manifest import (
    MANIFEST_NAME,
    PLAN_NAME,
    SHARDS_FOLDER,
    FileEntry,
    Manifest,
    Sidecar,
    load_document,
)
from eaglepipe.cache.samples.index_file import INDEX_FILE, index_key, is_bound
from eaglepipe.errors import CacheError, CorruptError, ResourceError
from eaglepipe.files.hashing import FileDigest, hash_file
from eaglepipe.files.publish import publish_bytes, published_file, put_if_absent
from eaglepipe.stores.local import MARKER, Mirror, local_folder, mirror_of
from eaglepipe.stores.objects import Listed, StoredFile
from eaglepipe.stores.room import BYTES_VARIABLE, PARTIAL_SUFFIX, SHARD_SUFFIX, Hold, NoRoomError
from eaglepipe.stores.traffic import counted_wait

_TRANSFERS = 8
_FRESH_SECONDS = 2.0
_ROOM_SECONDS = 120.0
_LOCKS = ".arriving"
LOCAL_NAMES = (MARKER, _LOCKS)
"""Of the files that a local folder has besides those of its cache."""
T = TypeVar("T")
_refreshed: dict[Path, float] = {}  # when this process last listed a root


def opened_location(text: str | Path) -> Path:
    """Return the local folder of a cache or a root that a command names, with the small files that its store has now.

    Raises:
        ConfigError: not the URL of a cache, or a package is missing.
        CacheError, UnreachableError: the store refuses, or does not answer.
    """
    folder = local_folder(text)
    pull(folder)
    return folder


def pull(folder: Path) -> None:
    """Make the small files of a local folder those of its store, if it stands for one.

    Raises:
        CacheError, UnreachableError: the store refuses, or does not answer.
    """
    if (mirror := mirror_of(folder)) is None:
        return
    started = time.time()
    listed = mirror.store.listing()
    for name in (PLAN_NAME, MANIFEST_NAME):
        _pull_document(mirror, name)
    try:
        manifest = load_document(folder / MANIFEST_NAME, Manifest)
    except (CacheError, CorruptError):  # which whoever opens the cache reports
        _pull_sidecars(mirror, listed, started)
        return
    _pull_files(mirror, [*manifest.files, *manifest.sidecars], listed)
    _pull_index(mirror, listed, index_key(manifest.identity, [entry.xxh3_128 for entry in manifest.sidecars]))
    for shard in manifest.shards:
        if (stored := listed.get(shard.path)) is None or stored.num_bytes != shard.bytes:
            (folder / shard.path).with_suffix(".json").unlink(missing_ok=True)


def pull_root(root: Path) -> None:
    """Fetch plans and manifests of all caches below a root that is in a store, and sidecars of incomplete ones."""
    mirror = mirror_of(root)
    if mirror is None or time.monotonic() - _refreshed.get(root, -_FRESH_SECONDS) < _FRESH_SECONDS:
        return
    names = mirror.store.folders()
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and folder.name not in names:
            for document in (PLAN_NAME, MANIFEST_NAME):
                (folder / document).unlink(missing_ok=True)

    def pull_cache(name: str) -> None:
        below, started = mirror_of(root / name), time.time()
        assert below is not None
        for document in (PLAN_NAME, MANIFEST_NAME):
            _pull_document(below, document)
        if (root / name / PLAN_NAME).exists() and not (root / name / MANIFEST_NAME).exists():
            _pull_sidecars(below, below.store.listing(), started)

    _each(pull_cache, names)
    _refreshed[root] = time.monotonic()


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
    mirror.store.put(entry.path, StoredFile(path=folder / entry.path, digest=digest))
    mirror.store.replace_document(name, sidecar)


def push_file(folder: Path, entry: FileEntry, path: Path) -> None:
    """Upload one file of a cache, whatever the store has in its place."""
    mirror = mirror_of(folder)
    assert mirror is not None
    digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    mirror.store.put(entry.path, StoredFile(path=path, digest=digest), replace=True)


def make_room(folder: Path, num_bytes: int) -> None:
    """Drop local copies that are not in use, so that a shard of that size can be written below the bound."""
    if (mirror := mirror_of(folder)) is not None:
        with suppress(NoRoomError):
            mirror.room.make_room(num_bytes)


def forget_shard(folder: Path, shard_name: str) -> None:
    """Delete a sidecar in the store, so that its shard counts as missing."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.store.remove(PurePosixPath(shard_name).with_suffix(".json").as_posix())


def push_files(folder: Path, entries: Iterable[FileEntry]) -> None:
    """Upload the small files of a cache that is about to be sealed; nothing for a cache that is local."""
    if (mirror := mirror_of(folder)) is None:
        return
    listed = mirror.store.listing()

    def push(entry: FileEntry) -> None:
        digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
        if entry.path not in listed or not mirror.store.holds(entry.path, digest):
            mirror.store.put(entry.path, StoredFile(path=folder / entry.path, digest=digest))

    _each(push, list(entries))


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


def stored_sizes(folder: Path) -> dict[str, int] | None:
    """Return the bytes of all files that the store of a folder has; None for a local cache."""
    mirror = mirror_of(folder)
    return None if mirror is None else {name: listed.num_bytes for name, listed in mirror.store.listing().items()}


def stored_digest(folder: Path, entry: FileEntry) -> str:
    """Read a file of a store whole and return its digest."""
    mirror = mirror_of(folder)
    assert mirror is not None
    return mirror.store.digest(entry.path, entry.bytes)


def abort_uploads(folder: Path, *, dry_run: bool) -> list[str]:
    """End the uploads to a cache or a root that killed writers left open; returns what they were for."""
    if (mirror := mirror_of(folder)) is None:
        return []
    for name in (PLAN_NAME, MANIFEST_NAME):
        _pull_document(mirror, name)
    return mirror.store.abort_uploads(dry_run=dry_run)


def stored_problem(folder: Path, entry: FileEntry) -> str | None:
    """Compare a file in the store of a folder with its entry; returns what differs."""
    mirror = mirror_of(folder)
    assert mirror is not None
    digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    return None if mirror.store.holds(entry.path, digest) else "lost in the store, or not as it was published"


def is_stored(folder: Path) -> bool:
    """Return whether a cache is in a store, and its folder holds copies alone."""
    return mirror_of(folder) is not None


def is_stored_shard(folder: Path, entry: FileEntry) -> bool:
    """Return whether an entry is a shard of a cache that is in a store, at hand or not."""
    path = PurePosixPath(entry.path)
    return path.parts[:1] == (SHARDS_FOLDER,) and path.suffix == SHARD_SUFFIX and mirror_of(folder) is not None


def is_away(folder: Path, entry: FileEntry) -> bool:
    """Return whether a shard is in the store of a folder and not at hand; its sidecar shows that the store has it."""
    path = folder / entry.path
    return is_stored_shard(folder, entry) and not path.exists() and path.with_suffix(".json").exists()


def held_shard(folder: Path, entry: FileEntry, *, is_awaited: bool = True) -> Hold | None:
    """Bring a shard of a store's cache to this machine, verified, and keep it there until the hold is released.

    Args:
        is_awaited: whether a reader waits for it, whose time is counted.

    Returns:
        None for a cache that is local.

    Raises:
        NoRoomError: too many shards are in use.
        CorruptError: the store has other bytes, or none.
        UnreachableError: it does not answer.
        ResourceError: the bound is too small, or the disk full.
    """
    mirror = mirror_of(folder)
    if mirror is None:
        return None
    path = folder / entry.path
    while True:
        with suppress(FileNotFoundError):
            hold = Hold(path)
            if path.stat().st_size == entry.bytes:
                return hold
            hold.release()
            path.unlink(missing_ok=True)
        with counted_wait() if is_awaited else nullcontext():
            _fetch_shard(mirror, entry)


@dataclass(frozen=True, kw_only=True)
class StoredShard:
    """A shard of a cache in a store."""

    folder: Path
    entry: FileEntry
    bound_bytes: int

    @property
    def key(self) -> Path:
        return self.folder / self.entry.path

    @property
    def num_bytes(self) -> int:
        return self.entry.bytes

    def fetch(self) -> None:
        """Bring it to this machine, unless it is there; raises what `held_shard` does."""
        if (hold := held_shard(self.folder, self.entry, is_awaited=False)) is not None:
            hold.release()


def _fetch_shard(mirror: Mirror, entry: FileEntry) -> None:
    """Bring a shard to this machine, once for all its processes."""
    path = mirror.folder / entry.path
    digest = FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
    locks = mirror.folder / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{path.name}.lock"):
        if path.exists() and path.stat().st_size == entry.bytes:
            return
        with mirror.room.file(path, entry.bytes) as descriptor:
            mirror.store.fetch(entry.path, digest, descriptor)


def drop_copy(folder: Path, entry: FileEntry) -> bool:
    """Drop the local copy of a shard, which may be damaged though the store's is not; returns whether there was one."""
    path = folder / entry.path
    copies = [copy for copy in (path, path.with_suffix(PARTIAL_SUFFIX)) if copy.exists()]
    if mirror_of(folder) is None or not copies:
        return False
    for copy in copies:
        copy.unlink(missing_ok=True)
    return True


def with_room(attempt: Callable[[], T], give_way: Callable[[], bool]) -> T:
    """Return the result of an attempt that may find no room, after giving way, or after others have.

    Raises:
        ResourceError: nobody gives way for two minutes.
    """
    started = time.monotonic()
    while True:
        try:
            return attempt()
        except NoRoomError:
            if give_way():
                continue
            if time.monotonic() - started > _ROOM_SECONDS:
                raise ResourceError(
                    f"no room for a shard since {_ROOM_SECONDS:.0f} s: other processes of this machine use all that "
                    f"the bound of local copies allows; raise cache.local_bytes or {BYTES_VARIABLE}"
                ) from None
            time.sleep(0.1)


def _pull_document(mirror: Mirror, name: str) -> None:
    path = mirror.folder / name
    data = mirror.store.read(name)
    if data is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != data:
        publish_bytes(path, data)


def _pull_sidecars(mirror: Mirror, listed: dict[str, Listed], started: float) -> None:
    """Make the local sidecars those of shards that the store has with the size that they give.

    Those that another process has published since the listing was asked for stay.
    """
    folder = mirror.folder / SHARDS_FOLDER
    names = [name for name in listed if name.startswith(f"{SHARDS_FOLDER}/") and name.endswith(".json")]
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            if f"{SHARDS_FOLDER}/{path.name}" not in names and path.stat().st_mtime < started:
                path.unlink()

    def pull_sidecar(name: str) -> None:
        path = mirror.folder / name
        data = path.read_bytes() if path.exists() else None
        if data is None or not listed[name].may_be(data):
            data = mirror.store.read(name)
            if data is None:
                path.unlink(missing_ok=True)
                return
            publish_bytes(path, data, tidy=False)
        with suppress(CacheError, CorruptError):  # which whoever reads the shard reports
            shard = load_document(path, Sidecar).shard
            stored = listed.get(PurePosixPath(name).with_suffix(".arrow").as_posix())
            if stored is None or stored.num_bytes != shard.bytes:
                path.unlink(missing_ok=True)

    _each(pull_sidecar, names)


def _pull_files(mirror: Mirror, entries: list[FileEntry], listed: dict[str, Listed]) -> None:
    """Fetch the small files that are not at hand with their digests; damage in the store stays visible."""

    def pull_file(entry: FileEntry) -> None:
        path = mirror.folder / entry.path
        if path.is_file() and path.stat().st_size == entry.bytes and hash_file(path) == entry.xxh3_128:
            return
        if entry.path not in listed:
            path.unlink(missing_ok=True)
            return
        with published_file(path, tidy=False) as pending:
            mirror.store.copy(entry.path, listed[entry.path].num_bytes, pending.stream.fileno())

    _each(pull_file, entries)


def _pull_index(mirror: Mirror, listed: dict[str, Listed], key: str) -> None:
    """Fetch the index of the samples if it is not at hand; one of other sidecars is never read."""
    path = mirror.folder / INDEX_FILE
    if INDEX_FILE not in listed or is_bound(path, key):
        return
    with published_file(path) as pending:
        mirror.store.copy(INDEX_FILE, listed[INDEX_FILE].num_bytes, pending.stream.fileno())


def _each(call: Callable[[T], None], items: list[T]) -> None:
    with ThreadPoolExecutor(_TRANSFERS, "store") as transfers:
        list(transfers.map(call, items))
