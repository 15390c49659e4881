"""JSON objects: read from files that anyone may have written, and compared leaf by leaf."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eaglepipe.errors import CorruptError
from eaglepipe.files.system_errors import explained_read_errors

MAX_NESTING = 64


def read_json_object(path: Path, *, strict: bool = False) -> dict[str, Any]:
    """Read a JSON object, UTF-8.

    Args:
        strict: refuse keys given twice, NaN and Infinity too.

    Raises:
        CorruptError: absent, not JSON, nested too deeply to be compared, or another kind of value.
        EaglepipeError, ResourceError: the system does not let it be read.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _unique_keys, "parse_constant": _no_nan} if strict else {}
    try:
        with explained_read_errors(path):
            text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark; save it as UTF-8 without one")
        value = json.loads(text, **hooks)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path}: not a readable JSON document: {error}") from None
    if not isinstance(value, dict):
        raise CorruptError(f"{path}: a JSON object is expected, this is a {type(value).__name__}")
    if _is_nested_deeper(value, MAX_NESTING):
        raise CorruptError(f"{path}: nested more than {MAX_NESTING} deep")
    return value


def _is_nested_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [item for container in level for item in _containers_in(container)]
    return bool(level)


def _containers_in(container: Any) -> list[Any]:
    inside = container.values() if isinstance(container, dict) else container
    return [item for item in inside if isinstance(item, dict | list)]


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json with those of the language model inside, if it has several parts, on top."""
    inside = config.get("text_config")
    return {**config, **(inside if isinstance(inside, Mapping) else {})}


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


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is given twice")
    return result


def _no_nan(token: str) -> None:
    raise ValueError(f"{token} is not JSON")
