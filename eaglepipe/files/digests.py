"""Folders with digests: a small document inside, written after the other files, has the size and xxh3_128 of each.

It carries a checksum of itself. Files that it does not list are nobody's concern; a folder without it is not checked.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eaglepipe.errors import CorruptError, EaglepipeError
from eaglepipe.files.hashing import FileDigest, hash_file, hash_json
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_json
from eaglepipe.files.system_errors import explained_read_errors

DIGESTS_FILE = "eaglepipe_digests.json"
"""A name that no engine, library or hub reads: they go by fixed names, and by the suffixes of weights."""
_VERSION = 1
_CHECKSUM_KEY = "xxh3_128"
_MAX_BYTES = 16 * 2**20


def publish_digests(folder: Path, digests: Mapping[str, FileDigest]) -> None:
    """Write the document of a folder's files, by their names."""
    fields = {"version": _VERSION, "files": digests_to_json(digests)}
    publish_json(folder / DIGESTS_FILE, {**fields, _CHECKSUM_KEY: hash_json(fields)})


def check_digests(folder: Path) -> None:
    """Compare every listed file with its digest; a folder without digests passes.

    Raises:
        CorruptError: the document is damaged, or files are missing or not as published; each is named.
        EaglepipeError: the document is of a later version, or a file cannot be read.
    """
    digests = read_digests(folder)
    if digests is not None and (problems := differing_files(folder, digests)):
        raise CorruptError(f"{folder}: not as published: {'; '.join(problems)}; {_advice(folder)}")


def read_digests(folder: Path) -> dict[str, FileDigest] | None:
    """Read a folder's digests, by file name; None if it has none.

    Raises:
        CorruptError: the document is damaged.
        EaglepipeError: it is of a later version, or cannot be read.
    """
    path = folder / DIGESTS_FILE
    with explained_read_errors(path):
        if not path.exists() and not path.is_symlink():
            return None
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise CorruptError(f"{path}: not a document of digests; {_advice(folder)}")
    try:
        raw = read_json_object(path, strict=True)
        declared = raw.pop(_CHECKSUM_KEY, None)
        if declared != hash_json(raw):
            raise ValueError("its checksum does not match its content")
        if type(version := raw.get("version")) is int and version > _VERSION:
            raise EaglepipeError(f"{path}: of version {version}, this eaglepipe reads {_VERSION}; {_advice(folder)}")
        return digests_from_json(raw.get("files"))
    except (CorruptError, ValueError, RecursionError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise CorruptError(f"{path}: {reason}; {_advice(folder)}") from None


def differing_files(folder: Path, digests: Mapping[str, FileDigest]) -> list[str]:
    """Return a line for each file that is missing, or not the one that was published."""
    problems = ((name, file_problem(folder / name, digest)) for name, digest in digests.items())
    return [f"{name} ({problem})" for name, problem in problems if problem is not None]


def file_problem(path: Path, published: FileDigest) -> str | None:
    """Compare a file with its digest, every byte; returns what differs.

    Raises:
        EaglepipeError, ResourceError: the system does not let it be read.
    """
    with explained_read_errors(path):
        if not path.is_file():
            return "lost"
        num_bytes = path.stat().st_size
    if num_bytes != published.bytes:
        return f"{num_bytes:,} bytes, published with {published.bytes:,}"
    try:
        digest = hash_file(path)
    except CorruptError as error:
        return str(error)
    return None if digest == published.xxh3_128 else "its bytes do not match their checksum"


def digests_to_json(digests: Mapping[str, FileDigest]) -> dict[str, Any]:
    """Return the JSON of digests by file name."""
    return {name: asdict(digest) for name, digest in digests.items()}


def digests_from_json(value: Any) -> dict[str, FileDigest]:
    """Return the digests of their JSON.

    Raises:
        ValueError: it is something else, or a name leaves the folder.
    """
    if not isinstance(value, dict):
        raise ValueError("it lists no files")
    digests = {}
    for name, entry in value.items():
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"{name!r} is not the name of a file in this folder")
        num_bytes, checksum = (entry.get("bytes"), entry.get("xxh3_128")) if isinstance(entry, dict) else (None, None)
        if type(num_bytes) is not int or not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{32}", checksum):
            raise ValueError(f"{name!r} has no size and checksum")
        digests[name] = FileDigest(bytes=num_bytes, xxh3_128=checksum)
    return digests


def _advice(folder: Path) -> str:
    return f"restore the folder, or, if the change is meant, delete {folder / DIGESTS_FILE}, which ends this check"
