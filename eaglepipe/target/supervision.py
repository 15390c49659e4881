"""From last hidden states to supervision, a bounded number of rows at a time.

Shapes: N supervised rows, Ht target hidden, V vocabulary, D draft vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from eaglepipe.cache.supervision.columns import Columns, concatenate_rows
from eaglepipe.vocab import DraftVocab

HeadLogits = Callable[[torch.Tensor], torch.Tensor]
EncodeChunk = Callable[[torch.Tensor, slice], Columns]
"""Encodes the target's distribution over the draft vocabulary, float32 [n, D], of the rows in a slice."""

_CPU_CHUNK_ROWS = 256  # more do not speed the product up, and their logits would be memory that the system has to clear
_CPU_BLOCK_NUMBERS = 2**18  # float32 logits that stay in a core's cache while they are gone over


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
        head_logits: hidden [n, Ht] -> logits [n, V], in float32 or a type that holds them exactly.
        last_hidden: [N, Ht], after the final norm.
        encode: called with each chunk's distributions; None if these are not needed.
    """
    device = last_hidden.device
    ids, mask = vocab.selected_token_ids.to(device), vocab.selected_token_mask.to(device)
    on_cpu = device.type == "cpu"
    chunk_rows = min(chunk_rows, _CPU_CHUNK_ROWS) if on_cpu else chunk_rows
    chunks = []
    for start in range(0, max(1, len(last_hidden)), chunk_rows):
        rows = slice(start, start + chunk_rows)
        logits = head_logits(last_hidden[rows])
        columns: Columns = {}
        if encode is not None:
            columns = encode(logits.index_select(-1, ids).float().softmax(dim=-1), rows)
        answers_of = _answers_by_blocks if on_cpu else _answers
        chunks.append(answers_of(logits, mask, covers_all=len(ids) == len(mask)) | columns)
    joined = concatenate_rows(chunks)
    answers = {name: joined.pop(name) for name in ("target_top1", "draft_mass", "position_mask", "finite")}
    return Supervision(**answers, columns=joined)


def _answers(logits: torch.Tensor, mask: torch.Tensor, *, covers_all: bool) -> Columns:
    logits = logits.float()
    top1, lowest = logits.argmax(dim=-1), logits.amin(dim=-1)
    if covers_all:
        highest = logits.gather(-1, top1[:, None]).squeeze(-1)
        return _columns(top1, torch.ones_like(highest), highest.isfinite() & lowest.isfinite(), mask)
    inside = torch.softmax(logits, dim=-1) @ mask.float()
    return _columns(top1, inside.clamp(max=1.0), inside.isfinite() & lowest.isfinite(), mask)


def _answers_by_blocks(logits: torch.Tensor, mask: torch.Tensor, *, covers_all: bool) -> Columns:
    """Return what `_answers` does of logits on the CPU, a few rows at a time and through NumPy where it is faster."""
    (num_rows, width), weights = logits.shape, mask.float()
    block = max(1, min(_CPU_CHUNK_ROWS, _CPU_BLOCK_NUMBERS // width))
    wide, probs = (torch.zeros(block, width) for _ in range(2))
    top1, lowest = torch.empty(num_rows, dtype=torch.int64), torch.empty(num_rows)
    highest, inside = torch.empty(num_rows), torch.ones(num_rows)
    for start in range(0, num_rows, block):
        end = min(start + block, num_rows)
        rows = wide[: end - start].copy_(logits[start:end])
        top1[start:end] = torch.from_numpy(rows.numpy().argmax(axis=-1))
        lowest[start:end] = torch.from_numpy(rows.numpy().min(axis=-1))
        highest[start:end] = rows.gather(-1, top1[start:end, None]).squeeze(-1)
        if not covers_all:  # all of the distribution is inside else
            torch.softmax(wide, dim=-1, out=probs)
            inside[start:end] = (probs @ weights)[: end - start]  # of a whole block, whose shape decides the last bits
    finite = inside.isfinite() & highest.isfinite() & lowest.isfinite()
    return _columns(top1, inside.clamp(max=1.0), finite, mask)


def _columns(top1: torch.Tensor, inside: torch.Tensor, finite: torch.Tensor, mask: torch.Tensor) -> Columns:
    return {
        "target_top1": top1.to(torch.int32),
        "draft_mass": inside,
        "position_mask": mask[top1],
        "finite": finite,
    }
