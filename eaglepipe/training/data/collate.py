"""Packs samples into the rows of a micro-batch and shifts them, once and only here (spec 3, 6).

Slot t gets the aux states of token t, the id of token t+1 and the supervision of row t+1, all of one document as far
as `doc_remaining` reaches. The small columns come first, so that a whole step can be counted before payloads move.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.types import CachedSample
from eaglepipe.training.data.batch import EncodedBatch, Reads
from eaglepipe.training.data.buffers import BufferPool
from eaglepipe.training.data.supervision_rows import (
    Choose,
    EncodedSupervision,
    allocate_supervision,
    copy_supervision,
    counted,
    nothing,
    supervised,
    usable,
)

Documents = tuple[tuple[CachedSample, ...], ...]
Run = Callable[[Callable[[], None]], None]
"""Runs a copy now or hands it to a thread."""
_CHOSEN: dict[str, Choose] = {"covered": counted, "supervised": supervised, "none": nothing}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The small columns of a micro-batch, shifted; shapes and dtypes as in `EncodedBatch`, on the host."""

    documents: Documents
    input_ids: torch.Tensor
    loss_mask: torch.Tensor
    position_mask: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    seq_lens: torch.Tensor
    doc_remaining: torch.Tensor

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())

    @property
    def num_supervised(self) -> int:
        return int(self.loss_mask.sum())

    @property
    def num_rows(self) -> int:
        """Slots that need the target's distribution."""
        return int(self.position_mask.sum())


def collate_columns(documents: Documents) -> Columns:
    """Rows of documents -> ids, masks and positions; T is the longest row's length."""
    lengths = [[len(document.input_ids) for document in row] for row in documents]
    num_slots = max((sum(row) for row in lengths), default=1)
    shape = (len(documents), num_slots)
    seq_lens = np.zeros((len(documents), max((len(row) for row in lengths), default=1)), np.int64)
    real, positions, remaining = (np.zeros(shape, np.int64) for _ in range(3))
    for row, of_row in enumerate(lengths):
        used = sum(of_row)
        seq_lens[row, : len(of_row)] = of_row
        seq_lens[row, len(of_row) - 1] += num_slots - used
        real[row, :used] = 1
        positions[row, :used] = np.concatenate([np.arange(n) for n in of_row])
        remaining[row, :used] = np.concatenate([np.arange(n - 1, -1, -1) for n in of_row])
    return Columns(
        documents=documents,
        input_ids=_shifted(documents, num_slots, lambda document: document.input_ids, np.int64),
        loss_mask=_shifted(documents, num_slots, lambda document: usable(document.supervised), np.bool_),
        position_mask=_shifted(documents, num_slots, counted, np.bool_).unsqueeze(-1),
        attention_mask=torch.from_numpy(real),
        position_ids=torch.from_numpy(positions),
        seq_lens=torch.from_numpy(seq_lens),
        doc_remaining=torch.from_numpy(remaining),
    )


def _shifted(
    documents: Documents,
    num_slots: int,
    column: Callable[[CachedSample], NDArray[np.generic]],
    dtype: type[np.generic],
) -> torch.Tensor:
    """One column of every row, [B, T], moved left by one with a zero tail."""
    values = np.zeros((len(documents), num_slots), dtype)
    for row, of_row in enumerate(documents):
        tokens = np.concatenate([column(document) for document in of_row])[1:]
        values[row, : len(tokens)] = tokens
    return torch.from_numpy(values)


def collate_payload(
    columns: Columns,
    *,
    aux_bytes: int,
    aux_scales: int,
    row_bytes: int,
    pinned: bool,
    run: Run,
    pool: BufferPool | None = None,
    reads: Reads = Reads(),  # noqa: B008 - frozen
    extras: Mapping[str, torch.Tensor] | None = None,
) -> EncodedBatch:
    """Add the encoded rows: the one copy between the mapped shard and the device.

    Args:
        aux_bytes: bytes of an encoded aux row; aux_scales: its scales, 0 without.
        row_bytes: bytes of an encoded supervision row, or of an entry of sparse ones.
        run: called with every copy; all of them must have run before the batch is used.
        pool: where unpinned buffers come from; pinned ones are reused by the allocator that gives them.
        reads: which rows the batch carries; extras: what the objective drew for it.
    """
    num_rows, num_slots = columns.input_ids.shape

    def buffer(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if pool is None or pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=pinned)
        return pool.take(shape, dtype)

    num_tokens = num_rows * num_slots
    wanted = {
        "aux_payload": (reads.aux, aux_bytes, torch.uint8),
        "aux_scales": (reads.aux and aux_scales > 0, aux_scales, torch.float32),
        "last_hidden_payload": (reads.last_hidden, row_bytes, torch.uint8),
    }
    of_tokens = {
        name: buffer((num_tokens, width), dtype) for name, (is_read, width, dtype) in wanted.items() if is_read
    }
    chosen = _CHOSEN[reads.supervision]
    supervision, parts = allocate_supervision(chain.from_iterable(columns.documents), row_bytes, buffer, chosen)
    for row, of_row in enumerate(columns.documents):
        starts = list(accumulate((len(document.input_ids) for document in of_row), initial=row * num_slots))
        for document, start in zip(of_row, starts[:-1], strict=True):
            run(_copy(document, start, of_tokens=of_tokens, supervision=next(parts), chosen=chosen))
        for column in of_tokens.values():
            column[starts[-1] : (row + 1) * num_slots] = 0
    small: dict[str, Any] = {name: _pin(getattr(columns, name), pinned) for name in _SMALL}
    drawn = {name: _pin(tensor, pinned) for name, tensor in (extras or {}).items()}
    return EncodedBatch(
        aux_payload=of_tokens.get("aux_payload", torch.empty(0, aux_bytes, dtype=torch.uint8)),
        aux_scales=of_tokens.get("aux_scales"),
        last_hidden_payload=of_tokens.get("last_hidden_payload"),
        supervision=supervision,
        extras=drawn,
        **small,
    )


_SMALL = (
    "input_ids",
    "loss_mask",
    "position_mask",
    "attention_mask",
    "position_ids",
    "seq_lens",
    "doc_remaining",
)


def _pin(tensor: torch.Tensor, pinned: bool) -> torch.Tensor:
    return tensor.pin_memory() if pinned else tensor


def _copy(
    document: CachedSample,
    start: int,
    *,
    of_tokens: Mapping[str, torch.Tensor],
    supervision: EncodedSupervision,
    chosen: Choose,
) -> Callable[[], None]:
    def copy() -> None:
        end = start + len(document.input_ids)
        for name, column in of_tokens.items():
            column[start:end].numpy()[:] = getattr(document, name)
        copy_supervision(document, supervision, chosen)

    return copy
