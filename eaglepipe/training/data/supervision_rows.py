"""The supervision of a micro-batch as the cache has it, still encoded: rows of the slots that count, and no others.

S rows. Dense and hidden supervision have one payload row each; sparse rows have E entries together, a payload row each.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.types import CachedSample

Allocate = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
Choose = Callable[[CachedSample], NDArray[np.bool_]]
"""The tokens of a document, bool [T], whose supervision rows a batch carries; supervised ones only."""


@dataclass(frozen=True, kw_only=True)
class EncodedSupervision:
    """Buffers of a micro-batch, or a part of them that one document fills."""

    payload: torch.Tensor  # uint8 [S, row bytes]; sparse: float16 probabilities, uint8 [E, 2]
    ids: torch.Tensor | None = None  # uint16 or uint32 [E], in the draft vocabulary
    counts: torch.Tensor | None = None  # int32 [S], entries of each row
    tail: torch.Tensor | None = None  # float32 [S]


def usable(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the first row, which lies before every slot of its document."""
    return np.concatenate([np.zeros(1, np.bool_), mask[1:]])


def counted(document: CachedSample) -> NDArray[np.bool_]:
    """Tokens whose supervision some slot learns from: bool [T]."""
    return usable(document.position_mask)


def supervised(document: CachedSample) -> NDArray[np.bool_]:
    """Tokens whose supervision some slot has, whether the draft vocabulary covers its top-1 or not: bool [T]."""
    return usable(document.supervised)


def nothing(document: CachedSample) -> NDArray[np.bool_]:
    """No token's: bool [T]."""
    return np.zeros(len(document.input_ids), np.bool_)


def allocate_supervision(
    documents: Iterable[CachedSample], row_bytes: int, allocate: Allocate, chosen: Choose = counted
) -> tuple[EncodedSupervision, Iterator[EncodedSupervision]]:
    """Buffers for the chosen rows of all documents, and the part of each in turn."""
    documents = list(documents)
    rows = [int(chosen(document).sum()) for document in documents]
    if not documents or documents[0].sparse_ids is None:
        whole = EncodedSupervision(payload=allocate((sum(rows), row_bytes), torch.uint8))
        return whole, (EncodedSupervision(payload=part) for part in whole.payload.split(rows))
    entries = [int(_wanted_counts(document, chosen).sum()) for document in documents]
    id_dtype = torch.uint16 if documents[0].sparse_ids.dtype == np.uint16 else torch.uint32
    payload = allocate((sum(entries), row_bytes), torch.uint8)
    ids = allocate((sum(entries),), id_dtype)
    counts = allocate((sum(rows),), torch.int32)
    tail = allocate((sum(rows),), torch.float32)
    parts = zip(payload.split(entries), ids.split(entries), counts.split(rows), tail.split(rows), strict=True)
    return (
        EncodedSupervision(payload=payload, ids=ids, counts=counts, tail=tail),
        (EncodedSupervision(payload=p, ids=i, counts=c, tail=t) for p, i, c, t in parts),
    )


def copy_supervision(document: CachedSample, into: EncodedSupervision, chosen: Choose = counted) -> None:
    """Fill a document's part of the buffers."""
    wanted = chosen(document)[document.supervised]
    if not wanted.any():
        return
    if into.ids is None or into.counts is None or into.tail is None:
        _take(document.supervision_payload, wanted, into.payload)
        return
    assert document.sparse_ids is not None and document.sparse_counts is not None and document.tail_mass is not None
    entries = np.repeat(wanted, document.sparse_counts)
    _take(document.supervision_payload, entries, into.payload)
    _take(document.sparse_ids, entries, into.ids)
    _take(document.sparse_counts, wanted, into.counts)
    _take(document.tail_mass, wanted, into.tail)


def _wanted_counts(document: CachedSample, chosen: Choose) -> NDArray[np.int32]:
    assert document.sparse_counts is not None
    return document.sparse_counts[chosen(document)[document.supervised]]


def _take(column: NDArray[np.generic], wanted: NDArray[np.bool_], into: torch.Tensor) -> None:
    np.take(column, np.flatnonzero(wanted), axis=0, out=into.numpy(), mode="clip")
