"""Atomic publication of files and folders: unique temporary sibling, write, check, fsync, rename, fsync the parent.

A reader sees a published file whole or not at all, also after a kill or a power cut. Whoever publishes a file or a
folder again removes what killed writers of it have left.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from eaglepipe.errors import CorruptError, EaglepipeError, ResourceError
from eaglepipe.files.hashing import FileDigest, digest_bytes
from eaglepipe.files.leftovers import (
    held_temporary,
    leftover_siblings,
    release,
    remove_abandoned,
    temporary_sibling,
)
from eaglepipe.files.system_errors import exhausted, explained_read_errors

_CHUNK_BYTES = 4 * 2**20
_DISK_MARGIN = 1.02
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing into an error that names the file, and the limit that was met.

    Raises:
        ResourceError: full disk, file size limit, too many open files, no memory.
        EaglepipeError: anything else, such as no permission.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            free = free_bytes(path)
            raise ResourceError(
                f"disk full while writing {path} ({free:,} bytes free); nothing half-written stays"
            ) from error
        if (limit := exhausted(error.errno)) is not None:
            raise ResourceError(f"{path}: cannot be written: {limit}; nothing half-written stays") from error
        raise EaglepipeError(f"{path}: cannot be written ({error.strerror or error})") from error


def free_bytes(path: Path) -> int:
    """Return the bytes free on the file system that holds `path`, which need not exist yet."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def check_free_bytes(folder: Path, needed_bytes: float, *, advice: str) -> None:
    """Check that the disk of a cache's folder has room for the shards to be written, with a margin for the rest.

    Raises:
        ResourceError: it has not; ends with `advice`.
    """
    needed, free = int(needed_bytes * _DISK_MARGIN), free_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"the cache needs {needed / 1e9:,.3g} GB, {folder.parent} has {free / 1e9:,.3g} GB free; {advice}"
        )


class PendingFile:
    """A file being written under a temporary name; it exists under its own name only after `publish()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary, self._hold = held_temporary(path, Path.touch)
            self.stream: BinaryIO = self.temporary.open("wb")

    def publish(self, check: Callable[[Path], None] | None = None, path: Path | None = None) -> None:
        """Make the file durable and visible, at `path` if that was not known before.

        A failure anywhere, fsync included, publishes nothing.

        Args:
            check: receives the finished temporary file and may raise.
        """
        path = path or self.path
        try:
            with explained_os_errors(path):
                self.stream.close()
                _fsync(self.temporary)
                if check is not None:
                    check(self.temporary)
                path.parent.mkdir(parents=True, exist_ok=True)
                _move(self.temporary, path)
        except BaseException:
            self.abort()
            raise
        self._release()

    def abort(self) -> None:
        """Drop all that was written."""
        with suppress(OSError):  # flushing to a full disk fails again here; the file goes anyway
            self.stream.close()
        self.temporary.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        release(self._hold)
        self._hold = None


@contextmanager
def published_file(path: Path, *, tidy: bool = True) -> Iterator[PendingFile]:
    """Yield a pending file that is published if the block succeeds, and dropped if it raises.

    Args:
        tidy: remove what killed writers of the file left; not for one of thousands in a folder that is tidied as a
            whole, as every removal lists the folder.
    """
    if tidy:
        remove_abandoned(leftover_siblings(path))
    pending = PendingFile(path)
    try:
        with explained_os_errors(path):
            yield pending
    except BaseException:
        pending.abort()
        raise
    pending.publish()


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that takes the place of `path` if the block succeeds, and goes if it raises.

    A folder that is already at `path` stays whole until then. Siblings that killed writers left are removed.

    Raises:
        ResourceError: full disk.
    """
    with explained_os_errors(path):
        remove_abandoned(leftover_siblings(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, hold = held_temporary(path, Path.mkdir)
    try:
        with explained_os_errors(path):
            yield temporary
            _fsync(temporary)
            with _out_of_sight(path) if path.exists() else nullcontext():
                _move(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        release(hold)


def remove_folder(folder: Path) -> None:
    """Delete a folder; a kill half-way leaves nothing torn under its name."""
    with _out_of_sight(folder):
        pass


def publish_bytes(path: Path, data: bytes, *, tidy: bool = True) -> FileDigest:
    """Publish a small file whole, `tidy` as in `published_file`; returns the digest of the bytes as they were given."""
    with published_file(path, tidy=tidy) as pending:
        pending.stream.write(data)
    return digest_bytes(data)


def publish_copy(source: Path, path: Path, *, digest: str) -> None:
    """Publish a copy of a file of any size.

    Raises:
        CorruptError: its bytes do not have that xxh3_128; nothing is published then.
    """
    copied = xxhash.xxh3_128()
    with published_file(path) as pending:
        for chunk in _chunks(source):
            pending.stream.write(chunk)
            copied.update(chunk)
        if copied.hexdigest() != digest:
            raise CorruptError(f"{source}: its bytes do not match the manifest's checksum")


def _chunks(path: Path) -> Iterator[bytes]:
    with explained_read_errors(path), path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def publish_json(path: Path, value: Any) -> FileDigest:
    """Publish a JSON file: UTF-8, indented, newline at the end, NaN refused; returns its digest."""
    return publish_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return the bytes that `publish_json` writes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def put_if_absent(path: Path, data: bytes) -> bool:
    """Publish `path` unless it exists; True for the one writer that made it."""
    remove_abandoned(leftover_siblings(path))
    pending = PendingFile(path)
    try:
        with explained_os_errors(path):
            pending.stream.write(data)
            pending.stream.close()
            _fsync(pending.temporary)
        os.link(pending.temporary, path)
    except FileExistsError:
        return False
    finally:
        pending.abort()
    _fsync(path.parent)
    return True


def _move(source: Path, target: Path) -> None:
    source.replace(target)
    _fsync(target.parent)


@contextmanager
def _out_of_sight(folder: Path) -> Iterator[None]:
    """Rename a folder to a temporary name, and delete it there after the block."""
    hidden = temporary_sibling(folder)
    _move(folder, hidden)
    yield
    shutil.rmtree(hidden)


def _fsync(path: Path) -> None:
    """Make a file's bytes, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
