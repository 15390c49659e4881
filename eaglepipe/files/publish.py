"""The one way a file comes into being: unique temporary sibling, write, check, fsync, rename, fsync the folder.

A reader sees a published file whole or not at all, also after a kill or a power cut.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from eaglepipe.errors import CorruptError, EaglepipeError, ResourceError

TEMPORARY_SUFFIX = ".tmp"
_CHUNK_BYTES = 4 * 2**20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def explained_os_errors(path: Path) -> Iterator[None]:
    """Turns what the system refuses into an error that names the file, and the space left where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            free = free_bytes(path)
            raise ResourceError(
                f"disk full while writing {path} ({free:,} bytes free); nothing half-written stays"
            ) from error
        raise EaglepipeError(f"{path}: cannot be written ({error.strerror or error})") from error


def free_bytes(path: Path) -> int:
    """Bytes free on the file system that holds `path`, which need not exist yet."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


class PendingFile:
    """A file being written under a temporary name; it exists under its own name only after `publish()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
        with explained_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.stream: BinaryIO = self.temporary.open("xb")

    def publish(self, check: Callable[[Path], None] | None = None) -> None:
        """Make it durable and visible. `check` sees the finished temporary file and may raise.

        A failure anywhere, fsync included, publishes nothing.
        """
        try:
            with explained_os_errors(self.path):
                self.stream.flush()
                os.fsync(self.stream.fileno())
                self.stream.close()
                if check is not None:
                    check(self.temporary)
                self.temporary.replace(self.path)
                fsync_folder(self.path.parent)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop what was written."""
        with suppress(OSError):  # flushing to a full disk fails again here; the file goes anyway
            self.stream.close()
        self.temporary.unlink(missing_ok=True)


def publish_bytes(path: Path, data: bytes) -> None:
    """Publish a small file whole."""
    pending = PendingFile(path)
    try:
        with explained_os_errors(path):
            pending.stream.write(data)
    except BaseException:
        pending.abort()
        raise
    pending.publish()


def publish_copy(source: Path, path: Path, *, digest: str) -> None:
    """Publish a copy of a file of any size.

    Raises:
        CorruptError: its bytes do not have that xxh3_128; nothing is published then.
    """
    found = xxhash.xxh3_128()
    pending = PendingFile(path)
    try:
        with source.open("rb") as stream, explained_os_errors(path):
            while chunk := stream.read(_CHUNK_BYTES):
                pending.stream.write(chunk)
                found.update(chunk)
        if found.hexdigest() != digest:
            raise CorruptError(f"{source}: its bytes do not match the manifest's checksum")
    except BaseException:
        pending.abort()
        raise
    pending.publish()


def publish_json(path: Path, value: Any) -> None:
    """Publish a JSON file: UTF-8, indented, newline at the end, NaN refused."""
    publish_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The bytes `publish_json` writes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def put_if_absent(path: Path, data: bytes) -> bool:
    """Publish `path` unless it exists; True for the one writer that made it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with explained_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = temporary.open("xb")
        with explained_os_errors(path), stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return True


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that a killed writer left behind."""
    return sorted(folder.rglob(f".*{TEMPORARY_SUFFIX}"))
