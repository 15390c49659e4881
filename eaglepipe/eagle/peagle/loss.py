"""KL of the draft from the target over P-EAGLE's elements: the fused head's cross-entropy less the target's entropy."""

from dataclasses import dataclass

import torch

from eaglepipe.eagle.kernels.fused_head import DenseRows
from eaglepipe.eagle.kernels.row_ops import row_blocks
from eaglepipe.eagle.unroll.interface import HostMasks, UnrollInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets, top_tokens


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What all partitions look up; S rows of the target's distribution."""

    rows: DenseRows | SparseRows  # as the fused head reads them
    row_of_slot: torch.Tensor  # int64 [B·T]
    tokens: torch.Tensor  # int64 [S], the target's greedy draft tokens
    entropies: torch.Tensor  # float32 [S]


def look_up_targets(inputs: UnrollInputs, masks: HostMasks, draft_size: int) -> Targets:
    """Targets of a batch; compact rows are those of the slots set in `loss_mask`."""
    probs, num_slots = inputs.target_probs, inputs.input_ids.numel()
    max_entries = 1 if masks.row_offsets is None or len(masks.row_offsets) < 2 else int(masks.row_offsets.diff().max())
    row_of_slot = torch.arange(num_slots)
    if isinstance(probs, SparseTargets) or probs.dim() == 2:
        row_of_slot = masks.loss_mask.flatten().long().cumsum(0) - 1
    return Targets(
        rows=_target_rows(probs, max_entries),
        row_of_slot=row_of_slot.to(inputs.input_ids.device),
        tokens=_target_tokens(probs, max_entries),
        entropies=_target_entropies(probs, draft_size),
    )


def _target_rows(targets: torch.Tensor | SparseTargets, max_entries: int) -> DenseRows | SparseRows:
    """Targets as the fused head reads them; `max_entries` of a row of sparse ones."""
    if isinstance(targets, SparseTargets):
        return SparseRows(targets=targets, max_entries=max_entries)
    return DenseRows(probs=targets.flatten(0, -2))


def _target_tokens(targets: torch.Tensor | SparseTargets, max_entries: int) -> torch.Tensor:
    """The target's greedy draft token for each row, int64."""
    if isinstance(targets, SparseTargets):
        return top_tokens(targets, max_entries)
    return targets.flatten(0, -2).max(dim=-1).indices


def _target_entropies(targets: torch.Tensor | SparseTargets, draft_size: int) -> torch.Tensor:
    """H(p) = -sum_v p[v] log p[v] of each row, float32; a tail counts as one token, as it does in the cross-entropy."""
    if isinstance(targets, torch.Tensor):
        rows = targets.flatten(0, -2)
        return torch.cat(
            [rows.new_zeros(0), *(torch.special.entr(rows[block].float()).sum(-1) for block in row_blocks(rows))]
        )
    counts = targets.row_offsets.diff()
    rows = torch.repeat_interleave(counts)
    tail = torch.special.entr(torch.where(counts < draft_size, targets.tail, 0.0).float())
    return tail.index_add(0, rows, torch.special.entr(targets.probs.float()))
