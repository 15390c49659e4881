"""A cache's identity: a hash of everything that decides its bytes, and of nothing else.

Fields are nested dicts of JSON values, so that two identities can be compared field by field.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

IDENTITY_PREFIX = 12


def cache_folder_name(name: str, identity: str) -> str:
    """Return the folder of a cache under its root."""
    return f"{name}-{identity[:IDENTITY_PREFIX]}"


def diff_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each leaf that differs: `data.max_length: 1024 -> 2048`."""
    for field, before, after in differing_leaves(old, new):
        yield f"{field}: {json.dumps(before)} -> {json.dumps(after)}"


def differing_leaves(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old value, new value) of each leaf that differs; an absent one counts as None."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differing_leaves(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}", before, after
