"""Shards of a store's cache on this machine: fetched once for all its processes, verified, held while in use."""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from filelock import FileLock

from eaglepipe.cache.manifest import (
    SHARDS_FOLDER,
    FileEntry,
)
from eaglepipe.cache.remote.names import ARRIVING_FOLDER
from eaglepipe.errors import ResourceError
from eaglepipe.files.hashing import FileDigest
from eaglepipe.stores.local import Mirror, mirror_of
from eaglepipe.stores.room import BYTES_VARIABLE, PARTIAL_SUFFIX, SHARD_SUFFIX, Hold, NoRoomError
from eaglepipe.stores.traffic import counted_wait

_ROOM_SECONDS = 120.0
T = TypeVar("T")


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
    locks = mirror.folder / ARRIVING_FOLDER
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
