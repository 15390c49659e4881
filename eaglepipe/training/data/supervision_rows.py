"""The supervision of a micro-batch as the cache has it, still encoded: rows of the slots that count, and no others."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.supervision.columns import ENTRY_COLUMNS, NUM_ENTRIES, Columns, item_index
from eaglepipe.cache.types import CachedSample

Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
Choose = Callable[[CachedSample], NDArray[np.bool_]]
"""The tokens of a document, bool [T], whose supervision rows a batch carries; supervised ones only."""


def without_first_row(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Clear the first row, which lies before every slot of its document."""
    return np.concatenate([np.zeros(1, np.bool_), mask[1:]])


def covered_mask(document: CachedSample) -> NDArray[np.bool_]:
    """Tokens whose supervision some slot learns from: bool [T]."""
    return without_first_row(document.position_mask)


def supervised_mask(document: CachedSample) -> NDArray[np.bool_]:
    """Tokens whose supervision some slot has, whether the draft vocabulary covers its top-1 or not: bool [T]."""
    return without_first_row(document.supervised)


def no_rows(document: CachedSample) -> NDArray[np.bool_]:
    """No token's: bool [T]."""
    return np.zeros(len(document.input_ids), np.bool_)


def allocate_supervision(
    documents: Sequence[CachedSample], allocate: Allocate, chosen: Sequence[NDArray[np.bool_]]
) -> tuple[Columns, Iterator[Columns]]:
    """Return buffers for the chosen tokens' rows of all documents, and the part of each in turn; at least one document.

    Args:
        chosen: of each document, bool [T].
    """
    sizes = [_num_items(document, _rows(document, mask)) for document, mask in zip(documents, chosen, strict=True)]
    whole, parts = {}, []
    for name, column in documents[0].supervision.items():
        lengths = [size[name] for size in sizes]
        dtype = torch.from_numpy(np.empty(0, column.dtype)).dtype
        whole[name] = allocate((sum(lengths), *column.shape[1:]), dtype)
        parts.append(whole[name].split(lengths))
    return whole, (dict(zip(whole, part, strict=True)) for part in zip(*parts, strict=True))


def copy_supervision(document: CachedSample, into: Columns, chosen: NDArray[np.bool_]) -> None:
    """Fill a document's part of the buffers."""
    rows = _rows(document, chosen)
    if len(rows) == 0:
        return
    for name, index in item_index(document.supervision, rows).items():
        np.take(document.supervision[name], index, axis=0, out=into[name].numpy(), mode="clip")


def _rows(document: CachedSample, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The chosen ones among the supervised rows."""
    return np.flatnonzero(chosen[document.supervised])


def _num_items(document: CachedSample, rows: NDArray[np.int64]) -> dict[str, int]:
    columns = document.supervision
    entries = int(columns[NUM_ENTRIES][rows].sum()) if NUM_ENTRIES in columns else len(rows)
    return {name: entries if name in ENTRY_COLUMNS else len(rows) for name in columns}
