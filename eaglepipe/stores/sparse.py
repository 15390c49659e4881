"""Local copies of objects of which only some parts are there: sparse files, with a byte for each part behind the end.

A part is marked once its bytes are written, so that a kill or another process never takes a hole for data.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from eaglepipe.stores.room import Reserve, Room

_BLOCK_SLACK = 4 * 4096  # a part touches a block more at each end, and that of its mark


class SparseCopy:
    """An open sparse copy, which stays for as long as this lives; for any thread."""

    def __init__(self, room: Room, path: Path, *, size: int, parts: int) -> None:
        """Open or make the copy of an object of `size` bytes.

        Raises:
            OSError: it cannot be made.
        """
        self.path, self._size = path, size
        self._reserve = Reserve.of(room)
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            if os.fstat(self._descriptor).st_nlink > 0:
                break
            os.close(self._descriptor)
        status = os.fstat(self._descriptor)
        os.utime(self._descriptor, ns=(time.time_ns(), status.st_mtime_ns))  # in use now, whatever the mount does
        if status.st_size != size + parts:
            os.truncate(self._descriptor, 0)
            os.truncate(self._descriptor, size + parts)

    def has(self, part: int) -> bool:
        """Return whether a part is there."""
        return os.pread(self._descriptor, 1, self._size + part) == b"\1"

    def fill(self, part: int, start: int, stop: int, fetch: Callable[[int, int], bytes]) -> None:
        """Fetch a part, unless it is there.

        Raises:
            NoRoomError: too much is in use.
            ResourceError: the bound is too small, or the disk full.
        """
        with self._lock:
            if self.has(part):
                return
            with self._reserve.taken(stop - start + _BLOCK_SLACK):
                self._write(fetch(start, stop), start)
                self._write(b"\1", self._size + part)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes that are there."""
        return os.pread(self._descriptor, stop - start, start)

    def release(self) -> None:
        """Let the copy go if room is needed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: bytes, position: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.release()
