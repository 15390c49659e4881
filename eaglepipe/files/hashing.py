"""xxh3_128 of files and JSON values, in hex."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from eaglepipe.files.system_errors import explained_read_errors


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """Size and xxh3_128 of a file."""

    bytes: int
    xxh3_128: str


def canonical_json(value: Any) -> bytes:
    """Return the one spelling of equal values: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_json(value: Any) -> str:
    """Hash a JSON value in its canonical form."""
    return xxhash.xxh3_128_hexdigest(canonical_json(value))


def hash_file(path: Path) -> str:
    """Hash a file's bytes; raises what `explained_read_errors` does."""
    with explained_read_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def digest_bytes(data: bytes) -> FileDigest:
    """Return the digest of a file with these bytes."""
    return FileDigest(bytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
