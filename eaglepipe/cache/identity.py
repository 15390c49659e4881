"""A cache's identity: a hash of everything that decides its bytes, and of nothing else.

Fields are nested dicts of JSON values, so that two identities can be told apart field by field.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

IDENTITY_PREFIX = 12
_CHUNK_BYTES = 4 * 2**20


def canonical_json(value: Any) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def hash_json(value: Any) -> str:
    """xxh3_128 of a JSON value's canonical form, hex."""
    return xxhash.xxh3_128_hexdigest(canonical_json(value))


def hash_file(path: Path) -> str:
    """xxh3_128 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hash_stream(stream)


def hash_stream(stream: BinaryIO) -> str:
    digest = xxhash.xxh3_128()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def cache_folder_name(name: str, identity: str) -> str:
    return f"{name}-{identity[:IDENTITY_PREFIX]}"


def diff_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """One line for each leaf that differs: `data.max_length: 1024 -> 2048`."""
    for field, before, after in differing_leaves(old, new):
        yield f"{field}: {json.dumps(before)} -> {json.dumps(after)}"


def differing_leaves(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of each leaf that differs; an absent one counts as None."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differing_leaves(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after
