"""Spans of queries, and the tables by which kernels take many of them at once: made on the host from numbers alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F

from eaglepipe.eagle.kernels.transfer import to_device

SHORT_SCORES = 2**14
"""Scores of a span, queries times keys, below which a call of a kernel costs as much as its arithmetic."""
SHORT_KEYS = 512
"""Keys of a span above which the copies that padding makes of them cost more than a call."""
PADDED_SCORES = 2**20
"""Scores of one call for short spans, padding included: 4 MiB of mask."""
PADDED_KEYS = 2**13
"""Keys of one call, padding included, which bounds the copies of states."""


@dataclass(frozen=True, kw_only=True)
class SlotSpan:
    """Contiguous queries `first`..`first + count` of one document, whose keys begin at `document`; cached slots."""

    document: int
    first: int
    count: int


@dataclass(frozen=True, kw_only=True)
class VarlenTables:
    """R spans as sequences of queries and keys, for a kernel that takes all at once; E keys of all spans together.

    A span's keys are those of its document up to its last query's own.
    """

    keys: torch.Tensor  # int64 [E], cached slots, span after span
    query_ends: torch.Tensor  # int32 [R + 1], from 0: span r has queries query_ends[r]..query_ends[r + 1]
    key_ends: torch.Tensor  # int32 [R + 1], likewise
    max_queries: int  # of a span; 2 at least, since kernels lay single queries out differently
    max_keys: int

    @classmethod
    def of(cls, spans: tuple[SlotSpan, ...], device: torch.device) -> "VarlenTables":
        """Make tables on `device`; nothing is read back from it."""
        columns = [(span.document, span.first + span.count, span.count) for span in spans]
        starts, ends, counts = torch.tensor(columns, dtype=torch.int64).reshape(-1, 3).unbind(1)
        lengths = ends - starts
        return cls(
            keys=to_device(ranges(starts, ends), device),
            query_ends=to_device(F.pad(counts.cumsum(0), (1, 0)).int(), device),
            key_ends=to_device(F.pad(lengths.cumsum(0), (1, 0)).int(), device),
            max_queries=max([2, *counts.tolist()]),
            max_keys=max([0, *lengths.tolist()]),
        )

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """The bounds of queries and keys, in the order in which varlen kernels take them."""
        return self.query_ends, self.key_ends, self.max_queries, self.max_keys


@dataclass(frozen=True, kw_only=True)
class PaddedSpans:
    """b short spans of m queries and s keys at most, for a kernel that takes a batch under a mask; on the host.

    Padding repeats the last query or key of its span. q queries and e keys are real.
    """

    queries: torch.Tensor  # int64 [b, m], rows of the step's queries
    keys: torch.Tensor  # int64 [b, s], cached slots
    mask: torch.Tensor  # float32 [b, 1, m, s], 0 or -inf; no row is hidden as a whole
    query_places: torch.Tensor  # int64 [q], the real ones of b·m
    query_rows: torch.Tensor  # int64 [q], the rows in those places
    key_places: torch.Tensor  # int64 [e], the real ones of b·s
    key_slots: torch.Tensor  # int64 [e], the slots in those places

    @classmethod
    def of(cls, spans: Sequence[tuple[int, SlotSpan]]) -> "PaddedSpans":
        """Make tables of spans, each with the row of its first query."""
        columns = np.array([(row, span.document, span.first, span.count) for row, span in spans])
        row, document, first, count = columns.T[..., None]
        length = first + count - document
        query, key = np.arange(count.max()), np.arange(length.max())
        queries, keys = row + np.minimum(query, count - 1), document + np.minimum(key, length - 1)
        future = key > (first - document + query)[..., None]
        query_places, key_places = np.flatnonzero(query < count), np.flatnonzero(key < length)
        return cls(
            queries=torch.from_numpy(queries),
            keys=torch.from_numpy(keys),
            mask=torch.from_numpy(np.where(future, np.float32(-np.inf), np.float32(0))[:, None]),
            query_places=torch.from_numpy(query_places),
            query_rows=torch.from_numpy(queries.ravel()[query_places]),
            key_places=torch.from_numpy(key_places),
            key_slots=torch.from_numpy(keys.ravel()[key_places]),
        )


@dataclass(frozen=True, kw_only=True)
class SpanGroups:
    """Short spans in groups of like lengths, and the others with the row of each one's first query."""

    short: tuple[PaddedSpans, ...]
    others: tuple[tuple[int, SlotSpan], ...]

    @classmethod
    def of(cls, spans: Sequence[SlotSpan]) -> "SpanGroups | None":
        """Group spans; None where no two of them are short."""
        rows = accumulate((span.count for span in spans), initial=0)
        placed = list(zip(rows, spans, strict=False))
        short = [place for place in placed if _is_short(place[1])]
        if len(short) < 2:
            return None
        others = tuple(place for place in placed if not _is_short(place[1]))
        return cls(short=tuple(map(PaddedSpans.of, _like_lengths(short))), others=others)


def _num_keys(span: SlotSpan) -> int:
    return span.first + span.count - span.document


def _num_scores(span: SlotSpan) -> int:
    return span.count * _num_keys(span)


def _is_short(span: SlotSpan) -> bool:
    return _num_scores(span) <= SHORT_SCORES and _num_keys(span) <= SHORT_KEYS


def _like_lengths(spans: Sequence[tuple[int, SlotSpan]]) -> Iterator[list[tuple[int, SlotSpan]]]:
    """Yield groups whose padding is bounded: by what is real, or by what one more call costs."""
    group: list[tuple[int, SlotSpan]] = []
    most_queries = real = 0
    for place in sorted(spans, key=lambda place: (_num_keys(place[1]), place[1].count)):  # the last has most keys
        span, wanted = place[1], real + _num_scores(place[1])
        queries = max(most_queries, span.count)
        keys = (len(group) + 1) * _num_keys(span)
        padded = keys * queries
        is_full = padded > PADDED_SCORES or keys > PADDED_KEYS
        if group and (is_full or padded - wanted > max(wanted, SHORT_SCORES)):
            yield group
            group, queries, wanted = [], span.count, _num_scores(span)
        group.append(place)
        most_queries, real = queries, wanted
    if group:
        yield group


@dataclass(frozen=True, kw_only=True)
class StepSpans:
    """All spans of one step, and tables of them for the kernels of the device."""

    spans: tuple[SlotSpan, ...]
    tables: VarlenTables | None  # on a CUDA device
    groups: SpanGroups | None = None  # on a CPU, where several spans are short

    @classmethod
    def on(cls, device: torch.device, spans: tuple[SlotSpan, ...]) -> "StepSpans":
        """Add the tables that a device has a kernel for."""
        tables = VarlenTables.of(spans, device) if device.type == "cuda" else None
        return cls(spans=spans, tables=tables, groups=SpanGroups.of(spans) if device.type == "cpu" else None)


def ranges(firsts: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return all numbers of the ranges first..end, one range after the other."""
    counts = ends - firsts
    offsets = torch.repeat_interleave(firsts - counts.cumsum(0) + counts, counts)
    return torch.arange(len(offsets)) + offsets
