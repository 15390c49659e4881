"""Uploads of files to an object store, each checked by the store's own checksum, else by reading it back."""

import contextlib
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from eaglepipe.errors import CorruptError
from eaglepipe.files.hashing import FileDigest
from eaglepipe.stores.filesystem import known_bucket
from eaglepipe.stores.objects import MAX_UPLOADS, PART_BYTES, ObjectStore

_MAX_PARTS = 9_000
_DIGEST_KEY = "eaglepipe-xxh3-128"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A local file, and the digest that it has."""

    path: Path
    digest: FileDigest


def upload(store: ObjectStore, name: str, file: StoredFile, *, replace: bool = False) -> None:
    """Upload a file, and check what the store has then by its own checksum, else by reading it back.

    An object that is there already is left if it has these bytes, and is replaced if it has not.

    Raises:
        CacheError: the store refuses, or has no such bucket.
        CorruptError: it keeps other bytes than were sent, time after time.
        UnreachableError: it does not answer.
    """
    tags = _entity_tags(file)
    for _ in range(MAX_UPLOADS):
        _send(store, name, file, create=not replace)
        if _has_arrived(store, name, file, tags):
            return
        replace = True
    raise store.other_bytes(name)


def store_holds(store: ObjectStore, name: str, expected: FileDigest) -> bool:
    """Return whether an object has these bytes: by the digest that its writer recorded with it, else by reading it.

    A recorded digest is one that the upload was checked against.
    """
    if store.size(name) != expected.bytes:
        return False
    recorded = _recorded(store, name)
    if recorded is not None and recorded != expected.xxh3_128:
        return False
    return recorded is not None or store.digest(name, expected.bytes) == expected.xxh3_128


def abort_open_uploads(store: ObjectStore, *, dry_run: bool) -> list[str]:
    """End uploads that killed writers left open below a store's URL, which it bills; returns their names."""
    if store.url.scheme != "s3":
        return []
    bucket, _, key = store.url.path.partition("/")
    uploads = store.calls.run("list of uploads", lambda fs: fs.list_multipart_uploads(bucket))
    mine = [upload for upload in uploads if upload["Key"].startswith(f"{key}/" if key else "")]
    for unfinished in () if dry_run else mine:
        fields = {"Bucket": bucket, "Key": unfinished["Key"], "UploadId": unfinished["UploadId"]}
        store.calls.run("open upload", partial(_abort_upload, fields))
    return [f"s3://{bucket}/{unfinished['Key']} (unfinished upload)" for unfinished in mine]


def _abort_upload(fields: dict[str, str], filesystem: Any) -> None:
    filesystem.call_s3("abort_multipart_upload", **fields)


def _send(store: ObjectStore, name: str, file: StoredFile, *, create: bool) -> None:
    """Upload, unless there is an object and none is to be replaced."""
    path, options = store.path_of(name), _put_options(store, file, create=create)

    def send(filesystem: Any) -> None:
        if create and not store.has_conditional_writes and filesystem.exists(path):
            raise FileExistsError(path)
        filesystem.put_file(str(file.path), path, **options)

    with contextlib.suppress(FileExistsError), known_bucket(store.url):
        store.calls.run(name, send)


def _put_options(store: ObjectStore, file: StoredFile, *, create: bool) -> dict[str, Any]:
    if store.url.scheme != "s3":
        return {}
    options: dict[str, Any] = {
        "chunksize": _part_bytes(file.digest.bytes),
        "max_concurrency": 4,
        "Metadata": {_DIGEST_KEY: file.digest.xxh3_128},
    }
    return {**options, "mode": "create"} if create else options


def _has_arrived(store: ObjectStore, name: str, file: StoredFile, tags: set[str]) -> bool:
    info = store.info(name)
    if info is None or int(info["size"]) != file.digest.bytes:
        return False
    tag = str(info.get("ETag", "")).strip('"')
    if store.url.scheme == "s3" and tag in tags:
        return True
    return store.digest(name, file.digest.bytes) == file.digest.xxh3_128


def _recorded(store: ObjectStore, name: str) -> str | None:
    if store.url.scheme != "s3":
        return None
    path = store.path_of(name)
    metadata = store.calls.run(name, lambda fs: fs.metadata(path))
    return metadata.get(_DIGEST_KEY) or metadata.get(_DIGEST_KEY.replace("-", "_"))


def _part_bytes(size: int) -> int:
    return max(PART_BYTES, -(-size // _MAX_PARTS))


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
