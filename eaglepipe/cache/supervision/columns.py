"""Supervision as encoded columns by name: the form in which it passes from the target to shards and to training.

A column has one item for each of N rows: bytes, uint8 [N, width], or a number, [N]. Sparse rows differ in length: their
ENTRY_COLUMNS have one item for each of E entries, row after row, and NUM_ENTRIES, int32 [N], counts those of each row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows, RowCodec

NUM_ENTRIES = "num_entries"
ENTRY_COLUMNS = ("target_probs", "target_ids")
Columns = dict[str, torch.Tensor]
"""On any device."""
HostColumns = Mapping[str, NDArray[Any]]


def concatenate_rows(parts: Sequence[Columns]) -> Columns:
    """Join the rows of several chunks, at least one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def to_host(columns: Columns) -> dict[str, NDArray[Any]]:
    """Move columns into host memory."""
    return {name: column.cpu().numpy() for name, column in columns.items()}


def split_rows(columns: HostColumns, sizes: Sequence[int]) -> Iterator[dict[str, NDArray[Any]]]:
    """Cut columns into views of `sizes` consecutive rows each."""
    row_ends = np.cumsum([0, *sizes])
    entry_ends = _entry_ends(columns)[row_ends] if NUM_ENTRIES in columns else row_ends
    for part in range(len(sizes)):
        rows, entries = (slice(ends[part], ends[part + 1]) for ends in (row_ends, entry_ends))
        yield {name: column[entries if name in ENTRY_COLUMNS else rows] for name, column in columns.items()}


def item_index(columns: HostColumns, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Return the items of each column that belong to some rows, in their order."""
    if NUM_ENTRIES not in columns:
        return dict.fromkeys(columns, rows)
    counts = columns[NUM_ENTRIES][rows].astype(np.int64)
    before = np.cumsum(counts) - counts
    entries = np.arange(counts.sum()) + np.repeat(_entry_ends(columns)[rows] - before, counts)
    return {name: entries if name in ENTRY_COLUMNS else rows for name in columns}


def take_rows(columns: HostColumns, rows: NDArray[np.int64]) -> Columns:
    """Copy some rows into tensors in host memory."""
    return {name: torch.from_numpy(columns[name][index]) for name, index in item_index(columns, rows).items()}


def _entry_ends(columns: HostColumns) -> NDArray[np.int64]:
    """[N + 1], 0 first: row i has the entries from [i] to [i + 1]."""
    return np.concatenate([[0], np.cumsum(columns[NUM_ENTRIES], dtype=np.int64)])


@dataclass(frozen=True, kw_only=True)
class RowSupervision:
    """Supervision of rows of one width, [N, W], each encoded as a whole; subclasses turn them into distributions."""

    codec: RowCodec

    name: ClassVar[str]
    column: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()

    @property
    def shape(self) -> list[int | str]:
        """The shape of a row."""
        return list(self.codec.row_shape)

    def encode(self, rows: torch.Tensor, _forced: object = None, _rule: object = None) -> Columns:
        """Encode rows [N, W]."""
        return {self.column: self.codec.encode(rows).payload}

    def finite_rows(self, columns: Columns) -> torch.Tensor:
        """Return which encoded rows are finite, bool [N]: a narrow type may overflow where the target did not."""
        return self.codec.finite_rows(EncodedRows(payload=columns[self.column]))

    def decode_rows(self, columns: Columns) -> torch.Tensor:
        """Return the rows as stored, [N, W] in the codec's dtype."""
        return self.codec.decode(EncodedRows(payload=columns[self.column]))
