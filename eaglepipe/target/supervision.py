"""From last hidden states to supervision, a bounded number of rows at a time.

Shapes: N supervised rows, Ht target hidden, V vocabulary, D draft vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from eaglepipe.cache.supervision.columns import Columns, concatenate_rows
from eaglepipe.target_head import target_distribution
from eaglepipe.vocab import DraftVocab

HeadLogits = Callable[[torch.Tensor], torch.Tensor]
EncodeChunk = Callable[[torch.Tensor, slice], Columns]
"""Encodes the target's distribution over the draft vocabulary, float32 [n, D], of the rows in a slice."""


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The target's answers at N rows, on the rows' device."""

    target_top1: torch.Tensor  # int32 [N], a target id
    draft_mass: torch.Tensor  # float32 [N], share of the full softmax inside the draft vocabulary
    position_mask: torch.Tensor  # bool [N], top-1 is in the draft vocabulary
    finite: torch.Tensor  # bool [N], False if the logits hold NaN or Inf
    columns: Columns  # of the distributions, as encoded


@torch.no_grad()
def supervise(
    head_logits: HeadLogits,
    last_hidden: torch.Tensor,
    vocab: DraftVocab,
    chunk_rows: int,
    *,
    encode: EncodeChunk | None = None,
) -> Supervision:
    """Supervise rows that all count; at most `chunk_rows` rows of logits exist at once.

    Args:
        head_logits: hidden [n, Ht] -> logits float32 [n, V].
        last_hidden: [N, Ht], after the final norm.
        encode: called with each chunk's distributions; None if these are not needed.
    """
    device = last_hidden.device
    ids, mask = vocab.selected_token_ids.to(device), vocab.selected_token_mask.to(device)
    every_row = torch.ones(len(last_hidden), dtype=torch.bool, device=device)
    chunks = []
    for start in range(0, max(1, len(last_hidden)), chunk_rows):
        rows = slice(start, start + chunk_rows)
        logits = head_logits(last_hidden[rows])
        columns: Columns = {}
        if encode is not None:
            columns = encode(target_distribution(logits[None], ids, mask, every_row[None, rows])[0][0], rows)
        chunks.append(_answers(logits, mask, covers_all=len(ids) == len(mask)) | columns)
    joined = concatenate_rows(chunks)
    answers = {name: joined.pop(name) for name in ("target_top1", "draft_mass", "position_mask", "finite")}
    return Supervision(**answers, columns=joined)


def _answers(logits: torch.Tensor, mask: torch.Tensor, *, covers_all: bool) -> Columns:
    top1 = _argmax(logits)
    inside = torch.softmax(logits, dim=-1) @ mask.float()
    return {
        "target_top1": top1.to(torch.int32),
        "draft_mass": torch.ones_like(inside) if covers_all else inside.clamp(max=1.0),
        "position_mask": mask[top1],
        "finite": inside.isfinite() & logits.amin(dim=-1).isfinite(),
    }


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    """int64 [n]; on the CPU through NumPy, whose search is several times faster."""
    return logits.argmax(dim=-1) if logits.is_cuda else torch.from_numpy(logits.numpy().argmax(axis=-1))
