"""Objects of one store folder: listed, read, fetched and put, each checked by size and digest on both ways."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from eaglepipe.errors import CacheError, CorruptError, UnreachableError
from eaglepipe.files.hashing import FileDigest
from eaglepipe.stores.filesystem import StoreCalls
from eaglepipe.stores.traffic import fetched
from eaglepipe.stores.urls import StoreUrl

_PART_BYTES = 8 * 2**20
"""Read in one request, and sent as one part of an upload; small, since a cut connection repeats a part."""
_MAX_PARTS = 9_000
_MAX_DOCUMENT_BYTES = 512 * 2**20
_DIGEST_KEY = "eaglepipe-xxh3-128"
_WRONG_UPLOADS = 3


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A local file, and the digest that it has."""

    path: Path
    digest: FileDigest


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
        self._calls = StoreCalls(url)

    def listing(self, below: str = "") -> dict[str, Listed]:
        """Return every object below a folder, by name relative to this store's URL."""
        path, found = self._path(below), dict[str, Any]()
        with contextlib.suppress(FileNotFoundError):
            found = self._calls.run("list of files", lambda fs: fs.find(path, detail=True))
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
            found = self._calls.run("list of folders", lambda fs: fs.ls(self._root, detail=True))
        if not found:
            self._require_bucket()
        return sorted(info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory")

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a small object; None if there is none."""
        size = self._size(name)
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

    def holds(self, name: str, expected: FileDigest) -> bool:
        """Return whether an object has these bytes: by the digest that its writer recorded with it, else by reading it.

        A recorded digest is one that the upload was checked against.
        """
        if self._size(name) != expected.bytes:
            return False
        recorded = self._recorded(name)
        if recorded is not None and recorded != expected.xxh3_128:
            return False
        return recorded is not None or self.digest(name, expected.bytes) == expected.xxh3_128

    def put(self, name: str, file: StoredFile, *, replace: bool = False) -> None:
        """Upload a file, and check what the store has then by its own checksum, else by reading it back.

        An object that is there already is left if it has these bytes, and is replaced if it has not.

        Raises:
            CacheError: the store refuses, or has no such bucket.
            CorruptError: it keeps other bytes than were sent, time after time.
            UnreachableError: it does not answer.
        """
        tags = _entity_tags(file)
        for _ in range(_WRONG_UPLOADS):
            self._send(name, file, create=not replace)
            if self._arrived(name, file, tags):
                return
            replace = True
        raise CorruptError(
            f"{self.url.joined(name)}: the store keeps other bytes than were sent, {_WRONG_UPLOADS} times"
        )

    def put_document(self, name: str, data: bytes) -> bool:
        """Put a small object unless there is one; returns whether these bytes were put.

        Two writers at once may both be told so by a store without conditional writes.
        """
        path = self._path(name)
        attempts = self._calls.attempts()

        def create(filesystem: Any) -> None:
            if not _can_create(self.url):
                if filesystem.exists(path):
                    raise FileExistsError(path)
                filesystem.pipe_file(path, data)
            else:
                filesystem.pipe_file(path, data, mode="create")

        try:
            with _known_bucket(self.url):
                self._calls.run(name, create, attempts=attempts)
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
        path = self._path(name)
        for _ in range(_WRONG_UPLOADS):
            with _known_bucket(self.url):
                self._calls.run(name, lambda fs: fs.pipe_file(path, data))
            if self.read(name) == data:
                return
        raise CorruptError(
            f"{self.url.joined(name)}: the store keeps other bytes than were sent, {_WRONG_UPLOADS} times"
        )

    def remove(self, name: str) -> None:
        """Delete an object; one that is not there is no error."""
        path = self._path(name)
        with contextlib.suppress(FileNotFoundError):
            self._calls.run(name, lambda fs: fs.rm_file(path))

    def abort_uploads(self, *, dry_run: bool) -> list[str]:
        """End uploads that killed writers left open below this URL, which a store bills; returns their names."""
        if self.url.scheme != "s3":
            return []
        bucket, _, key = self._root.partition("/")
        uploads = self._calls.run("list of uploads", lambda fs: fs.list_multipart_uploads(bucket))
        mine = [upload for upload in uploads if upload["Key"].startswith(f"{key}/" if key else "")]
        for upload in () if dry_run else mine:
            fields = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            self._calls.run("open upload", partial(_abort_upload, fields))
        return [f"s3://{bucket}/{upload['Key']} (unfinished upload)" for upload in mine]

    def _require_bucket(self) -> None:
        """Tell an empty place from one that no store has."""
        if self.url.scheme in ("s3", "gs"):
            bucket = self._root.partition("/")[0]
            with _known_bucket(self.url):
                self._calls.run("bucket", lambda fs: fs.info(bucket))

    def _wrong(self, name: str) -> CorruptError:
        return CorruptError(
            f"{self.url.joined(name)}: the store keeps other bytes than were sent, {_WRONG_UPLOADS} times"
        )

    @property
    def _root(self) -> str:
        return self.url.path

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _size(self, name: str) -> int | None:
        info = self._info(name)
        return None if info is None or info["type"] != "file" else int(info["size"])

    def _info(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        try:
            info: dict[str, Any] = self._calls.run(name, lambda fs: fs.info(path))
        except FileNotFoundError:
            return None
        return info

    def _recorded(self, name: str) -> str | None:
        if self.url.scheme != "s3":
            return None
        path = self._path(name)
        metadata = self._calls.run(name, lambda fs: fs.metadata(path))
        return metadata.get(_DIGEST_KEY) or metadata.get(_DIGEST_KEY.replace("-", "_"))

    def _parts(self, name: str, size: int, first: int = 0) -> Iterator[bytes]:
        path, attempts = self._path(name), self._calls.attempts()
        for start in range(first, size, _PART_BYTES):
            stop = min(start + _PART_BYTES, size)

            def part(filesystem: Any, start: int = start, stop: int = stop) -> bytes:
                data: bytes = filesystem.cat_file(path, start=start, end=stop)
                if len(data) != stop - start:
                    raise OSError(f"{len(data):,} bytes came of {stop - start:,}")
                return data

            try:
                yield self._calls.run(name, part, attempts=attempts)
            except FileNotFoundError:
                raise CorruptError(f"{self.url.joined(name)}: missing in the store") from None
            attempts.succeeded(name)
            fetched(stop - start)

    def _send(self, name: str, file: StoredFile, *, create: bool) -> None:
        """Upload, unless there is an object and none is to be replaced."""
        path, options = self._path(name), self._put_options(file, create=create)

        def send(filesystem: Any) -> None:
            if create and not _can_create(self.url) and filesystem.exists(path):
                raise FileExistsError(path)
            filesystem.put_file(str(file.path), path, **options)

        with contextlib.suppress(FileExistsError), _known_bucket(self.url):
            self._calls.run(name, send)

    def _put_options(self, file: StoredFile, *, create: bool) -> dict[str, Any]:
        if self.url.scheme != "s3":
            return {}
        options: dict[str, Any] = {
            "chunksize": _part_bytes(file.digest.bytes),
            "max_concurrency": 4,
            "Metadata": {_DIGEST_KEY: file.digest.xxh3_128},
        }
        return {**options, "mode": "create"} if create else options

    def _arrived(self, name: str, file: StoredFile, tags: set[str]) -> bool:
        info = self._info(name)
        if info is None or int(info["size"]) != file.digest.bytes:
            return False
        tag = str(info.get("ETag", "")).strip('"')
        if self.url.scheme == "s3" and tag in tags:
            return True
        return self.digest(name, file.digest.bytes) == file.digest.xxh3_128


def _abort_upload(fields: dict[str, str], filesystem: Any) -> None:
    filesystem.call_s3("abort_multipart_upload", **fields)


def _can_create(url: StoreUrl) -> bool:
    return url.scheme == "s3"


def _part_bytes(size: int) -> int:
    return max(_PART_BYTES, -(-size // _MAX_PARTS))


def _entity_tags(file: StoredFile) -> set[str]:
    """Return the tags that S3 gives a file sent whole or in parts, unless it is encrypted with a key of KMS.

    Raises:
        CorruptError: the file's bytes are not those of its digest.
    """
    digest = xxhash.xxh3_128()
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with file.path.open("rb") as stream:
        while part := stream.read(_part_bytes(file.digest.bytes)):
            digest.update(part)
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    if digest.hexdigest() != file.digest.xxh3_128:
        raise CorruptError(f"{file.path}: its bytes do not match their checksum, so it is not uploaded")
    joined = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return {whole.hexdigest(), f"{joined}-{len(parts)}"}


@contextlib.contextmanager
def _known_bucket(url: StoreUrl) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CacheError(f"{url}: no such bucket or repository, or not for this user; make it first") from None
