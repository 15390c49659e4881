"""The files of a cache besides its shards, published with records of their digests until the cache is sealed.

A digest comes from the bytes that were written, never from reading a file back, so that sealing sees every change.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from eaglepipe.cache.manifest import Document, FileEntry, document_bytes, file_entry, load_document
from eaglepipe.cache.remote.shards import is_stored_shard
from eaglepipe.cache.remote.stored import stored_problem
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files import digests
from eaglepipe.files.hashing import FileDigest
from eaglepipe.files.publish import publish_bytes
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.progress import ProgressLine

Origin = Literal["corpus", "target"]
"""What files are made from: those of one origin are recorded, and redone, together."""
_READERS = 4
ORIGINS: tuple[Origin, ...] = ("corpus", "target")


class FixedFiles(Document):
    """`work/ORIGIN.json`: the files of one origin, written after them."""

    schema_version: int
    identity: str
    files: tuple[FileEntry, ...]


def publish_files(folder: Path, files: Mapping[str, bytes]) -> tuple[FileEntry, ...]:
    """Publish files by their paths inside a cache; returns their entries."""
    for name, data in files.items():
        publish_bytes(folder / name, data)
    return tuple(file_entry(name, data) for name, data in files.items())


def record_files(folder: Path, origin: Origin, identity: str, entries: tuple[FileEntry, ...]) -> None:
    """Record all files of an origin as published."""
    record = FixedFiles(schema_version=SCHEMA_VERSION, identity=identity, files=entries)
    publish_bytes(record_path(folder, origin), document_bytes(record))


def recorded_files(folder: Path, origin: Origin, identity: str) -> tuple[FileEntry, ...] | None:
    """Return the files of an origin; None if they are not published, or their record is damaged."""
    path = record_path(folder, origin)
    if not path.exists():
        return None
    try:
        record = load_document(path, FixedFiles)
    except (CacheError, CorruptError):
        return None
    return record.files if record.identity == identity else None


def record_path(folder: Path, origin: Origin) -> Path:
    return folder / WORK_FOLDER / f"{origin}.json"


def file_problems(folder: Path, entries: Sequence[FileEntry]) -> Iterator[str | None]:
    """Compare large files with their entries, a few at a time, with a progress line; yields what differs, or None."""
    with (
        ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), "check") as readers,
        ProgressLine("check", total=sum(entry.bytes for entry in entries), unit="B") as progress,
    ):
        found = readers.map(lambda entry: file_problem(folder, entry), entries)
        for entry, problem in zip(entries, found, strict=True):
            progress.update(entry.bytes)
            yield problem


def file_problem(folder: Path, entry: FileEntry) -> str | None:
    """Compare a file with its entry, every byte; a shard of a store's cache there. Returns what differs."""
    path = folder / entry.path
    if is_stored_shard(folder, entry):
        return stored_problem(folder, entry)
    with explained_read_errors(path):
        if path.exists() and folder.resolve() not in path.resolve().parents:
            return "leads out of the cache's folder"
    return digests.file_problem(path, FileDigest(bytes=entry.bytes, xxh3_128=entry.xxh3_128))
