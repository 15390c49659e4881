"""A local folder whose files stay within a bound: shards that an object store has go first, the longest unused of all.

All processes of a machine share it. A shard in use is held by a shared lock, which ends with its process; one that is
on its way already counts with all its bytes. Only shards with a sidecar go: the others are not in the store yet.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from eaglepipe.errors import ResourceError
from eaglepipe.files.leftovers import held_temporary, is_temporary, release, remove_abandoned
from eaglepipe.files.publish import explained_os_errors

SHARD_SUFFIX = ".arrow"
_LOCK = ".room.lock"


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
            with self._lock():
                self._make_room(num_bytes)
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
        with explained_os_errors(self.root), self._lock():
            self._make_room(num_bytes)

    def used_bytes(self) -> int:
        """Return the bytes of all files."""
        return sum(status.st_size for _, status in _files(self.root))

    def _lock(self) -> FileLock:
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / _LOCK)

    def _make_room(self, num_bytes: int) -> None:
        files = list(_files(self.root))
        excess = sum(status.st_size for _, status in files) + num_bytes - self.bytes
        if excess <= 0:
            return
        dead = [(path, status) for path, status in files if is_temporary(path) and remove_abandoned([path])]
        excess -= sum(status.st_size for _, status in dead)
        shards = [(path, status) for path, status in files if _may_go(path)]
        for path, status in sorted(shards, key=lambda shard: shard[1].st_atime_ns):
            if excess <= 0:
                return
            if _dropped(path):
                excess -= status.st_size
        if excess > 0:
            others = sum(status.st_size for _, status in files) - sum(status.st_size for _, status in shards + dead)
            if others + num_bytes > self.bytes:
                raise ResourceError(
                    f"{self.root}: may hold {self.bytes:,} bytes, and needs {others + num_bytes:,} for one shard of "
                    f"{num_bytes:,} and what belongs to its caches; raise cache.local_bytes or {BYTES_VARIABLE}"
                )
            raise NoRoomError


BYTES_VARIABLE = "EAGLEPIPE_LOCAL_CACHE_BYTES"


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


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with suppress(FileNotFoundError):
                yield path, path.lstat()


def _may_go(path: Path) -> bool:
    return path.suffix == SHARD_SUFFIX and not is_temporary(path) and path.with_suffix(".json").exists()


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
