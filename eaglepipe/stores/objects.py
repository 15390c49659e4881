"""Objects of one store folder: listed, read and fetched, checked by size and digest; small ones put and removed."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from eaglepipe.errors import CorruptError, UnreachableError
from eaglepipe.files.hashing import FileDigest
from eaglepipe.stores.filesystem import StoreCalls, known_bucket
from eaglepipe.stores.traffic import fetched
from eaglepipe.stores.urls import StoreUrl

PART_BYTES = 8 * 2**20
"""Read in one request, and sent as one part of an upload; small, since a cut connection repeats a part."""
_MAX_DOCUMENT_BYTES = 512 * 2**20
MAX_UPLOADS = 3
"""Of an object that arrives with other bytes than were sent."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An object as a listing shows it; `tag` is its MD5 if S3 has it from one request, else anything or nothing."""

    num_bytes: int
    tag: str

    def may_be(self, data: bytes) -> bool:
        """Return whether the object can have these bytes, as far as size and tag tell."""
        is_md5 = len(self.tag) == 32
        return self.num_bytes == len(data) and (
            not is_md5 or self.tag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        )


class ObjectStore:
    """The objects below one URL, by their names relative to it; for any thread."""

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self.calls = StoreCalls(url)

    @property
    def has_conditional_writes(self) -> bool:
        """Whether the store itself puts an object only if there is none."""
        return self.url.scheme == "s3"

    def listing(self, below: str = "") -> dict[str, Listed]:
        """Return every object below a folder, by name relative to this store's URL."""
        path, found = self.path_of(below), dict[str, Any]()
        with contextlib.suppress(FileNotFoundError):
            found = self.calls.run("list of files", lambda fs: fs.find(path, detail=True))
        if not found:
            self._require_bucket()
        start = len(self._root) + 1
        return {
            info["name"][start:]: Listed(num_bytes=int(info["size"]), tag=str(info.get("ETag", "")).strip('"'))
            for info in found.values()
            if info["type"] == "file" and len(info["name"]) > start and not info["name"].endswith("/")
        }

    def folders(self) -> list[str]:
        """Return the names of the folders directly below, sorted; none if there is no such place."""
        found = list[dict[str, Any]]()
        with contextlib.suppress(FileNotFoundError):
            found = self.calls.run("list of folders", lambda fs: fs.ls(self._root, detail=True))
        if not found:
            self._require_bucket()
        return sorted(info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small object; None if there is none."""
        size = self.size(name)
        if size is None:
            return None
        if size > _MAX_DOCUMENT_BYTES:
            raise CorruptError(f"{self.url.joined(name)}: {size:,} bytes, more than any document of a cache has")
        return b"".join(self._parts(name, size))

    def fetch(self, name: str, expected: FileDigest, descriptor: int) -> None:
        """Write an object to an open file.

        Raises:
            CorruptError: it is missing, or not the one that was published.
            UnreachableError: it did not come, or not completely.
        """
        if self.copy(name, expected.bytes, descriptor) != expected.xxh3_128:
            raise CorruptError(f"{self.url.joined(name)}: its bytes do not match their checksum")

    def copy(self, name: str, size: int, descriptor: int) -> str:
        """Write so many bytes of an object to an open file, whatever they are; returns their xxh3_128."""
        digest, position = xxhash.xxh3_128(), 0
        for part in self._parts(name, size):
            digest.update(part)
            view = memoryview(part)
            while view:
                written = os.pwrite(descriptor, view, position)
                view, position = view[written:], position + written
        return digest.hexdigest()

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of an object; raises what `fetch` does."""
        return b"".join(self._parts(name, stop, start))

    def digest(self, name: str, size: int) -> str:
        """Read an object whole and return its xxh3_128; raises what `fetch` does."""
        digest = xxhash.xxh3_128()
        for part in self._parts(name, size):
            digest.update(part)
        return digest.hexdigest()

    def put_document(self, name: str, data: bytes) -> bool:
        """Put a small object unless there is one; returns whether these bytes were put.

        Two writers at once may both be told so by a store without conditional writes.
        """
        path = self.path_of(name)
        attempts = self.calls.attempts()

        def create(filesystem: Any) -> None:
            if not self.has_conditional_writes:
                if filesystem.exists(path):
                    raise FileExistsError(path)
                filesystem.pipe_file(path, data)
            else:
                filesystem.pipe_file(path, data, mode="create")

        try:
            with known_bucket(self.url):
                self.calls.run(name, create, attempts=attempts)
        except FileExistsError:
            return self.read(name) == data
        if (kept := self.read(name)) != data:
            raise UnreachableError(
                f"{self.url.joined(name)}: {'lost' if kept is None else 'changed'} as soon as it was put; "
                "run the same command again"
            )
        return True

    def replace_document(self, name: str, data: bytes) -> None:
        """Put a small object, whatever is there."""
        path = self.path_of(name)
        for _ in range(MAX_UPLOADS):
            with known_bucket(self.url):
                self.calls.run(name, lambda fs: fs.pipe_file(path, data))
            if self.read(name) == data:
                return
        raise self.other_bytes(name)

    def remove(self, name: str) -> None:
        """Delete an object; one that is not there is no error."""
        path = self.path_of(name)
        with contextlib.suppress(FileNotFoundError):
            self.calls.run(name, lambda fs: fs.rm_file(path))

    def path_of(self, name: str) -> str:
        """Return the path of an object as the file system takes it."""
        return f"{self._root}/{name}" if name else self._root

    def size(self, name: str) -> int | None:
        """Return the bytes of an object; None if there is none."""
        info = self.info(name)
        return None if info is None or info["type"] != "file" else int(info["size"])

    def info(self, name: str) -> dict[str, Any] | None:
        """Return what the store tells of an object; None if there is none."""
        path = self.path_of(name)
        try:
            info: dict[str, Any] = self.calls.run(name, lambda fs: fs.info(path))
        except FileNotFoundError:
            return None
        return info

    def other_bytes(self, name: str) -> CorruptError:
        """Return the error of an object that never arrives as it was sent."""
        return CorruptError(f"{self.url.joined(name)}: the store keeps other bytes than were sent, {MAX_UPLOADS} times")

    def _require_bucket(self) -> None:
        """Tell an empty place from one that no store has."""
        if self.url.scheme in ("s3", "gs"):
            bucket = self._root.partition("/")[0]
            with known_bucket(self.url):
                self.calls.run("bucket", lambda fs: fs.info(bucket))

    @property
    def _root(self) -> str:
        return self.url.path

    def _parts(self, name: str, size: int, first: int = 0) -> Iterator[bytes]:
        path, attempts = self.path_of(name), self.calls.attempts()
        for start in range(first, size, PART_BYTES):
            stop = min(start + PART_BYTES, size)

            def part(filesystem: Any, start: int = start, stop: int = stop) -> bytes:
                data: bytes = filesystem.cat_file(path, start=start, end=stop)
                if len(data) != stop - start:
                    raise OSError(f"{len(data):,} bytes came of {stop - start:,}")
                return data

            try:
                yield self.calls.run(name, part, attempts=attempts)
            except FileNotFoundError:
                raise CorruptError(f"{self.url.joined(name)}: missing in the store") from None
            attempts.succeeded(name)
            fetched(stop - start)
