"""A local folder whose files stay within a bound: shards that an object store has go first, the longest unused of all.

All processes of a machine share it. A shard in use is held by a shared lock, which ends with its process; one that is
on its way already counts with all its bytes. Only shards with a sidecar go: the others are not in the store yet.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from filelock import FileLock

from eaglepipe.errors import ResourceError
from eaglepipe.files.leftovers import held_temporary, is_temporary, release, remove_abandoned
from eaglepipe.files.publish import explained_os_errors

SHARD_SUFFIX = ".arrow"
PARTIAL_SUFFIX = ".partial"
"""Of a sparse copy, which counts with the blocks that it has."""
_LOCK = ".room.lock"
_RESERVES = 64  # of the bound, that a process may take at once


class NoRoomError(Exception):
    """Everything that could go is in use."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A folder and the bytes that it may hold."""

    root: Path
    bytes: int

    @contextmanager
    def file(self, path: Path, num_bytes: int) -> Iterator[int]:
        """Yield the descriptor of a file of that size, which appears at `path` if the block succeeds.

        Raises:
            NoRoomError: too many shards are in use.
            ResourceError: the bound is too small, or the disk full.
        """
        with explained_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.locked():
                self.make_room_locked(num_bytes)
                temporary, hold = held_temporary(path, Path.touch)
                descriptor = os.open(temporary, os.O_RDWR)
                os.truncate(descriptor, num_bytes)
            try:
                yield descriptor
                os.fsync(descriptor)
                temporary.replace(path)
            finally:
                os.close(descriptor)
                temporary.unlink(missing_ok=True)
                release(hold)

    def make_room(self, num_bytes: int) -> None:
        """Drop the longest unused shards until so many bytes are free below the bound; raises what `file` does."""
        with explained_os_errors(self.root), self.locked():
            self.make_room_locked(num_bytes)

    def used_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(size for _, _, size in _files(self.root))

    def locked(self) -> FileLock:
        """Return the lock of all processes that change what the folder holds."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / _LOCK)

    def make_room_locked(self, num_bytes: int) -> None:
        """Do as `make_room` while `locked` is held."""
        files = list(_files(self.root))
        used = sum(size for _, _, size in files)
        excess = used + num_bytes - self.bytes
        if excess <= 0:
            return
        temporary = [(path, size) for path, _, size in files if is_temporary(path)]
        excess -= sum(size for path, size in temporary if remove_abandoned([path]))
        shards = [file for file in files if _may_go(file[0])]
        for path, _, size in sorted(shards, key=lambda shard: shard[1]):
            if excess <= 0:
                return
            if _dropped(path):
                excess -= size
        if excess > 0:
            others = used - sum(size for _, _, size in shards) - sum(size for _, size in temporary)
            if others + num_bytes > self.bytes:
                raise ResourceError(
                    f"{self.root}: may hold {self.bytes:,} bytes, and needs {others + num_bytes:,} for one shard of "
                    f"{num_bytes:,} and what belongs to its caches; raise cache.local_bytes or {BYTES_VARIABLE}"
                )
            raise NoRoomError


BYTES_VARIABLE = "EAGLEPIPE_LOCAL_CACHE_BYTES"


class Reserve:
    """Bytes that this process has taken below the bound and not used yet: a file of that size, which counts for all.

    So that not every small part needs a look at all files.
    """

    _all: ClassVar[dict[tuple[int, Room], "Reserve"]] = {}
    _making: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, room: Room) -> None:
        self._room, self._free, self._shown = room, 0, 0
        self._lock = threading.Lock()
        room.root.mkdir(parents=True, exist_ok=True)
        self._file, self._hold = held_temporary(room.root / "reserve", Path.touch)

    @classmethod
    def of(cls, room: Room) -> "Reserve":
        """Return the reserve of this process."""
        key = os.getpid(), room
        with cls._making:
            if key not in cls._all:
                cls._all[key] = cls(room)
            return cls._all[key]

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        """Take bytes that the block writes to files below the bound.

        Raises:
            NoRoomError: too much is in use.
            ResourceError: the bound is too small, or the disk full.
        """
        with self._lock, explained_os_errors(self._room.root):
            if self._free < num_bytes:
                self._grow(num_bytes)
            self._free -= num_bytes
        try:
            yield
        finally:
            with self._lock, explained_os_errors(self._room.root):
                self._show(-num_bytes)

    def _grow(self, num_bytes: int) -> None:
        with self._room.locked():
            for more in (max(num_bytes, self._room.bytes // _RESERVES), num_bytes):
                try:
                    self._room.make_room_locked(more)
                except NoRoomError:
                    if more == num_bytes:
                        raise
                    continue
                self._free += more
                self._show(more)
                return

    def _show(self, num_bytes: int) -> None:
        self._shown += num_bytes
        with suppress(FileNotFoundError):  # somebody has emptied the folder
            os.truncate(self._file, self._shown)


class Hold:
    """A shard that stays where it is until `release`, or until this process ends."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError: it is not there, or is going."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            status = os.fstat(self._descriptor)
            if status.st_nlink == 0:
                raise FileNotFoundError(path)
            os.utime(self._descriptor, ns=(time.time_ns(), status.st_mtime_ns))  # in use now, whatever the mount does
        except BlockingIOError:
            os.close(self._descriptor)
            raise FileNotFoundError(path) from None
        except OSError:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.release()


def _files(root: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield each file with the time of its last use and its bytes."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                status = path.lstat()
                is_sparse = path.suffix == PARTIAL_SUFFIX
                yield path, status.st_atime_ns, status.st_blocks * 512 if is_sparse else status.st_size


def _may_go(path: Path) -> bool:
    return (
        path.suffix in (SHARD_SUFFIX, PARTIAL_SUFFIX) and not is_temporary(path) and path.with_suffix(".json").exists()
    )


def _dropped(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
