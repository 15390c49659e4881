"""From last hidden states to supervision, a bounded number of rows at a time.

Shapes: N supervised rows, Ht target hidden, V vocabulary, D draft vocabulary.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from eaglepipe.cache.supervision.sparse import SparseRows, SparseRule, encode_sparse, to_draft_index
from eaglepipe.target_head import target_distribution
from eaglepipe.vocab import DraftVocab

HeadLogits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What a target says at N rows, on the rows' device."""

    target_probs: torch.Tensor | None  # float32 [N, D], renormalised inside the draft vocabulary
    target_top1: torch.Tensor  # int32 [N], a target id
    draft_mass: torch.Tensor  # float32 [N], share of the full softmax inside the draft vocabulary
    position_mask: torch.Tensor  # bool [N], top-1 is in the draft vocabulary
    finite: torch.Tensor  # bool [N], False where the logits hold NaN or Inf
    sparse: SparseRows | None = None  # of the same probabilities


@dataclass(frozen=True, kw_only=True)
class SparseRequest:
    """How to cut the distribution of N rows, and the target ids that row by row are always kept."""

    rule: SparseRule
    forced: torch.Tensor  # int64 [N, F]


@torch.no_grad()
def supervise(
    head_logits: HeadLogits,
    last_hidden: torch.Tensor,
    vocab: DraftVocab,
    chunk_rows: int,
    *,
    keep_probs: bool,
    sparse: SparseRequest | None = None,
) -> Supervision:
    """Supervision of rows that are all supervised; at most `chunk_rows` rows of logits exist at once.

    Args:
        head_logits: hidden [n, Ht] -> logits float32 [n, V].
        last_hidden: [N, Ht], after the final norm.
        vocab: the draft vocabulary.
        chunk_rows: rows of logits in memory.
        keep_probs: False leaves `target_probs` None.
        sparse: asks for the sparse form too, cut chunk by chunk.
    """
    device = last_hidden.device
    ids, mask = vocab.selected_token_ids.to(device), vocab.selected_token_mask.to(device)
    chunks = [
        _supervise_chunk(head_logits(rows), ids, mask, keep_probs=keep_probs, sparse=part)
        for rows, part in zip(last_hidden.split(chunk_rows), _split(sparse, chunk_rows), strict=False)
    ] or [_no_rows(ids, device, keep_probs=keep_probs, sparse=sparse)]
    kept = [chunk.sparse for chunk in chunks if chunk.sparse is not None]
    probs = [chunk.target_probs for chunk in chunks if chunk.target_probs is not None]
    return Supervision(
        target_probs=torch.cat(probs) if keep_probs else None,
        target_top1=torch.cat([chunk.target_top1 for chunk in chunks]),
        draft_mass=torch.cat([chunk.draft_mass for chunk in chunks]),
        position_mask=torch.cat([chunk.position_mask for chunk in chunks]),
        finite=torch.cat([chunk.finite for chunk in chunks]),
        sparse=SparseRows.joined(kept) if kept else None,
    )


def _split(sparse: SparseRequest | None, chunk_rows: int) -> Iterator[SparseRequest | None]:
    if sparse is None:
        yield from itertools.repeat(None)
    else:
        yield from (replace(sparse, forced=rows) for rows in sparse.forced.split(chunk_rows))


def _supervise_chunk(
    logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, *, keep_probs: bool, sparse: SparseRequest | None
) -> Supervision:
    top1 = _argmax(logits)
    inside = torch.softmax(logits, dim=-1) @ mask.float()
    probs = None
    if keep_probs or sparse is not None:
        everywhere = torch.ones(logits.shape[:1], dtype=torch.bool, device=logits.device)
        probs = target_distribution(logits[None], ids, mask, everywhere[None])[0][0]
    return Supervision(
        target_probs=probs if keep_probs else None,
        target_top1=top1.to(torch.int32),
        draft_mass=inside.clamp(max=1.0) if ids.shape[0] < mask.shape[0] else torch.ones_like(inside),
        position_mask=mask[top1],
        finite=inside.isfinite() & logits.amin(dim=-1).isfinite(),
        sparse=None if sparse is None or probs is None else _cut(probs, ids, sparse),
    )


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """int64 [n]; on the CPU through NumPy, whose search is several times faster."""
    return logits.argmax(dim=-1) if logits.is_cuda else torch.from_numpy(logits.numpy().argmax(axis=-1))


def _cut(probs: torch.Tensor, ids: torch.Tensor, sparse: SparseRequest) -> SparseRows:
    return encode_sparse(probs, to_draft_index(sparse.forced.to(ids.device), ids), sparse.rule)


def _no_rows(ids: torch.Tensor, device: torch.device, *, keep_probs: bool, sparse: SparseRequest | None) -> Supervision:
    probs = torch.empty(0, ids.shape[0], device=device)
    return Supervision(
        target_probs=probs if keep_probs else None,
        target_top1=torch.empty(0, dtype=torch.int32, device=device),
        draft_mass=torch.empty(0, device=device),
        position_mask=torch.empty(0, dtype=torch.bool, device=device),
        finite=torch.empty(0, dtype=torch.bool, device=device),
        sparse=None if sparse is None else _cut(probs, ids, sparse),
    )
