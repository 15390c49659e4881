"""Packing of samples into the rows of a micro-batch, and the one shift to the left.

Slot t gets the aux states of token t, the id of token t+1 and the supervision of row t+1, all of one document as far
as `doc_remaining` reaches. The small columns come first, so that a whole step can be counted before payloads move.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from eaglepipe.cache.supervision.columns import NUM_ENTRIES, Columns
from eaglepipe.cache.types import CachedSample
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.sequence_share import SequenceShare
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

    def count(self, mask: str) -> int:
        """Count the slots of this process that are set in a mask of the batch."""
        return int((getattr(self.batch, mask) & self.batch.owned).sum())

    def places(self) -> Iterator[tuple[int, int, int]]:
        """Yield row, first slot and end of each document."""
        for row, documents in enumerate(self.documents):
            starts = accumulate((len(document.input_ids) for document in documents), initial=0)
            yield from ((row, start, end) for start, end in pairwise(starts))

    def chosen(self, choose: Choose) -> Iterator[NDArray[np.bool_]]:
        """Yield the tokens of each document, [T], that `choose` takes and whose supervision this process reads."""
        share, documents = self.batch.share, chain.from_iterable(self.documents)
        if share is None:
            yield from map(choose, documents)
            return
        read = share.read(self.batch.shape).numpy()
        for document, (row, start, end) in zip(documents, self.places(), strict=True):
            mask = choose(document)
            mask[1:] &= read[row, start : end - 1]  # the supervision of a token is that of the slot before it
            yield mask


def pack_documents(documents: Documents, share: SequenceShare | None = None) -> PackedDocuments:
    """Make the ids, masks and positions of rows of documents; T is the longest row's length.

    Args:
        share: of the process that computes a part of the slots.
    """
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
        share=share,
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
    num_slots = packed.batch.shape[1]
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
    owned = packed.batch.owned.numpy()
    num_owned = int(owned.sum())
    token_rows = {
        name: buffer((num_owned, width), dtype) for name, (is_read, width, dtype) in token_columns.items() if is_read
    }
    chosen = list(packed.chosen(_CHOSEN[columns.supervision]))
    documents = list(chain.from_iterable(packed.documents))
    supervision, parts = allocate_supervision(documents, buffer, chosen)
    before = np.concatenate([[0], owned.ravel().cumsum()])  # owned slots before each slot
    for document, mask, (row, start, end) in zip(documents, chosen, packed.places(), strict=True):
        own = owned[row, start:end]
        run(partial(_copy, document, own, int(before[row * num_slots + start]), token_rows))
        run(partial(copy_supervision, document, next(parts), mask))
    for row, real in enumerate(packed.batch.attention_mask.sum(dim=1).tolist()):
        padding = slice(int(before[row * num_slots + real]), int(before[(row + 1) * num_slots]))
        for column in token_rows.values():
            column[padding] = 0
    drawn = dict(extras or {})
    return EncodedBatch(
        packed=packed.batch.pin_memory() if pinned else packed.batch,
        aux_payload=token_rows.get("aux_payload", torch.empty(0, aux_bytes, dtype=torch.uint8)),
        aux_scales=token_rows.get("aux_scales"),
        last_hidden_payload=token_rows.get("last_hidden_payload"),
        supervision=supervision,
        extras={name: tensor.pin_memory() for name, tensor in drawn.items()} if pinned else drawn,
    )


def _copy(document: CachedSample, own: NDArray[np.bool_], first: int, token_rows: Mapping[str, torch.Tensor]) -> None:
    """Copy the rows `own` [T] of a document, run by run, to `first` and on."""
    edges = np.flatnonzero(np.diff(own, prepend=False, append=False))
    for start, end in edges.reshape(-1, 2).tolist():
        for name, column in token_rows.items():
            column[first : first + end - start].numpy()[:] = getattr(document, name)[start:end]
        first += end - start


def sparse_layout(supervision: Columns) -> SparseLayout | None:
    """Return the bounds of sparse rows on the host, once they have been copied; None for other supervision."""
    if NUM_ENTRIES not in supervision:
        return None
    ids = supervision["target_ids"].numpy()
    return SparseLayout(
        row_offsets=F.pad(supervision[NUM_ENTRIES].cumsum(0, dtype=torch.int64), (1, 0)),
        id_bounds=torch.tensor([ids.min(), ids.max()] if len(ids) else [], dtype=torch.int64),
    )
