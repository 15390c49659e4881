"""Packing of samples into the rows of a micro-batch, and the one shift to the left.

Slot t gets the aux states of token t, the id of token t+1 and the supervision of row t+1, all of one document as far
as `doc_remaining` reaches. The small columns come first, so that a whole step can be counted before payloads move.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from eaglepipe.cache.supervision.columns import NUM_ENTRIES, Columns
from eaglepipe.cache.types import CachedSample
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.sparse_rows import SparseLayout
from eaglepipe.training.data.batch import BatchColumns, EncodedBatch
from eaglepipe.training.data.buffers import BufferPool
from eaglepipe.training.data.supervision_rows import (
    Choose,
    allocate_supervision,
    copy_supervision,
    covered_mask,
    no_rows,
    supervised_mask,
    without_first_row,
)

Documents = tuple[tuple[CachedSample, ...], ...]
"""The samples of each row."""
CopyRunner = Callable[[Callable[[], None]], None]
"""Runs a copy now or hands it to a thread."""
_CHOSEN: dict[str, Choose] = {"covered": covered_mask, "supervised": supervised_mask, "none": no_rows}


@dataclass(frozen=True, kw_only=True)
class PackedDocuments:
    """The documents of a micro-batch and the small columns made of them, on the host."""

    documents: Documents
    batch: PackedBatch


def pack_documents(documents: Documents) -> PackedDocuments:
    """Make the ids, masks and positions of rows of documents; T is the longest row's length."""
    lengths = [[len(document.input_ids) for document in row] for row in documents]
    num_slots = max((sum(row) for row in lengths), default=1)
    shape = (len(documents), num_slots)
    seq_lens = np.zeros((len(documents), max((len(row) for row in lengths), default=1)), np.int64)
    positions, remaining = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    real = np.zeros(shape, np.bool_)
    for row, row_lengths in enumerate(lengths):
        used = sum(row_lengths)
        seq_lens[row, : len(row_lengths)] = row_lengths
        seq_lens[row, len(row_lengths) - 1] += num_slots - used
        real[row, :used] = True
        positions[row, :used] = np.concatenate([np.arange(n) for n in row_lengths])
        remaining[row, :used] = np.concatenate([np.arange(n - 1, -1, -1) for n in row_lengths])
    batch = PackedBatch(
        input_ids=shifted_column(documents, num_slots, lambda document: document.input_ids, np.int64),
        loss_mask=shifted_column(
            documents, num_slots, lambda document: without_first_row(document.supervised), np.bool_
        ),
        position_mask=shifted_column(documents, num_slots, covered_mask, np.bool_),
        attention_mask=torch.from_numpy(real),
        position_ids=torch.from_numpy(positions),
        seq_lens=torch.from_numpy(seq_lens),
        doc_remaining=torch.from_numpy(remaining),
    )
    return PackedDocuments(documents=documents, batch=batch)


def shifted_column(
    documents: Documents,
    num_slots: int,
    column: Callable[[CachedSample], NDArray[np.generic]],
    dtype: type[np.generic],
) -> torch.Tensor:
    """Return one column of every row, [B, T], moved left by one with a zero tail."""
    values = np.zeros((len(documents), num_slots), dtype)
    for row, row_documents in enumerate(documents):
        tokens = np.concatenate([column(document) for document in row_documents])[1:]
        values[row, : len(tokens)] = tokens
    return torch.from_numpy(values)


def encode_batch(
    packed: PackedDocuments,
    *,
    pinned: bool,
    run: CopyRunner,
    pool: BufferPool | None = None,
    columns: BatchColumns = BatchColumns(),  # noqa: B008 - frozen
    extras: Mapping[str, torch.Tensor] | None = None,
) -> EncodedBatch:
    """Add the encoded rows: the one copy between the sample's bytes and the device.

    Args:
        run: called with every copy; all of them must have run before the batch is used.
        pool: source of unpinned buffers; pinned ones are reused by the allocator that gives them.
        columns: the rows that the batch carries.
        extras: the tensors that the objective drew for it.
    """
    num_rows, num_slots = packed.batch.shape
    first = packed.documents[0][0]
    aux_bytes = first.aux_payload.shape[1]
    hidden_bytes = 0 if first.last_hidden_payload is None else first.last_hidden_payload.shape[1]
    num_scales = 0 if first.aux_scales is None else first.aux_scales.shape[1]

    def buffer(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if pool is None or pinned:
            return torch.empty(shape, dtype=dtype, pin_memory=pinned)
        return pool.take(shape, dtype)

    token_columns = {
        "aux_payload": (columns.aux, aux_bytes, torch.uint8),
        "aux_scales": (columns.aux and num_scales > 0, num_scales, torch.float32),
        "last_hidden_payload": (columns.last_hidden, hidden_bytes, torch.uint8),
    }
    token_rows = {
        name: buffer((num_rows * num_slots, width), dtype)
        for name, (is_read, width, dtype) in token_columns.items()
        if is_read
    }
    chosen = _CHOSEN[columns.supervision]
    supervision, parts = allocate_supervision(chain.from_iterable(packed.documents), buffer, chosen)
    for row, documents in enumerate(packed.documents):
        starts = list(accumulate((len(document.input_ids) for document in documents), initial=row * num_slots))
        for document, start in zip(documents, starts[:-1], strict=True):
            run(partial(_copy, document, start, token_rows, next(parts), chosen))
        for column in token_rows.values():
            column[starts[-1] : (row + 1) * num_slots] = 0
    drawn = dict(extras or {})
    return EncodedBatch(
        packed=packed.batch.pin_memory() if pinned else packed.batch,
        aux_payload=token_rows.get("aux_payload", torch.empty(0, aux_bytes, dtype=torch.uint8)),
        aux_scales=token_rows.get("aux_scales"),
        last_hidden_payload=token_rows.get("last_hidden_payload"),
        supervision=supervision,
        extras={name: tensor.pin_memory() for name, tensor in drawn.items()} if pinned else drawn,
    )


def _copy(
    document: CachedSample, start: int, token_rows: Mapping[str, torch.Tensor], supervision: Columns, chosen: Choose
) -> None:
    end = start + len(document.input_ids)
    for name, column in token_rows.items():
        column[start:end].numpy()[:] = getattr(document, name)
    copy_supervision(document, supervision, chosen)


def sparse_layout(supervision: Columns) -> SparseLayout | None:
    """Return the bounds of sparse rows on the host, once they have been copied; None for other supervision."""
    if NUM_ENTRIES not in supervision:
        return None
    ids = supervision["target_ids"].numpy()
    return SparseLayout(
        row_offsets=F.pad(supervision[NUM_ENTRIES].cumsum(0, dtype=torch.int64), (1, 0)),
        id_bounds=torch.tensor([ids.min(), ids.max()] if len(ids) else [], dtype=torch.int64),
    )
