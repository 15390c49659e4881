"""Nested values as files store them: as JSON text, as columns, as numpy arrays, with nulls for absent keys."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from eaglepipe.chat.faults import Fault, RowError


def decoded(value: Any, what: str, fault: Fault = "malformed") -> Any:
    """Return the value of a JSON text, None for a blank one; anything but a string as it is.

    Raises:
        RowError: the text is not JSON; the message begins with `what`.
    """
    if isinstance(value, np.ndarray):
        return value.tolist()
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise RowError(fault, f"{what} is a string that is not JSON: {error}") from None


def rows_of_columns(columns: Mapping[str, Any], what: str) -> list[dict[str, Any]] | None:
    """Return the rows of an object whose values are lists, one entry a row, or None if it is no such object.

    Raises:
        RowError: the lists differ in length.
    """
    lists = {str(key): as_list(value) for key, value in columns.items() if value is not None}
    if not lists or not all(isinstance(value, list) for value in lists.values()):
        return None
    lengths = {key: len(value) for key, value in lists.items()}
    if len(set(lengths.values())) > 1:
        raise RowError("malformed", f"{what} are columns of different lengths: {lengths}")
    return [dict(zip(lists, entries, strict=True)) for entries in zip(*lists.values(), strict=True)]


def as_list(value: Any) -> Any:
    """Return a numpy array or a tuple as a list, anything else as it is."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def without_nulls(value: Any, keep: Collection[str] = ()) -> Any:
    """Leave out the null entries of nested objects, but for those of the keys in `keep`.

    Arrow's structs have an entry for every key that any row has.
    """
    if isinstance(value, Mapping):
        entries = ((key, entry) for key, entry in value.items() if entry is not None or key in keep)
        return {key: without_nulls(entry, keep) for key, entry in entries}
    if isinstance(value, list) and value and not isinstance(value[0], (int, float, str)):
        return [without_nulls(entry, keep) for entry in value]
    return value
