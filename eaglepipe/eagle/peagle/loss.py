"""KL of the draft from the target over P-EAGLE's elements: the fused head's cross-entropy less the target's entropy."""

from dataclasses import dataclass

import torch

from eaglepipe.eagle.kernels.fused_head import DenseRows
from eaglepipe.eagle.kernels.row_ops import row_blocks
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets


@dataclass(frozen=True, kw_only=True)
class Targets:
    """S rows of the target's distribution, as all partitions look them up."""

    rows: DenseRows | SparseRows  # as the fused head reads them
    row_of_slot: torch.Tensor  # int64 [B·T]
    tokens: torch.Tensor  # int64 [S], the target's greedy draft tokens
    entropies: torch.Tensor  # float32 [S]


def look_up_targets(inputs: TrainerInputs, draft_size: int) -> Targets:
    """Look up the targets of a batch; compact rows are those of the slots set in `loss_mask`."""
    host, rows = inputs.batch.on_host(), inputs.target_rows()
    row_of_slot = torch.arange(host.loss_mask.numel())
    if inputs.has_compact_rows:
        row_of_slot = host.loss_mask.flatten().long().cumsum(0) - 1
    return Targets(
        rows=rows,
        row_of_slot=row_of_slot.to(inputs.batch.device),
        tokens=rows.top_tokens(),
        entropies=target_entropies(inputs.whole_targets, draft_size),
    )


def target_entropies(targets: torch.Tensor | SparseTargets, draft_size: int) -> torch.Tensor:
    """Return H(p) = -sum_v p[v] log p[v] of each row, float32; a tail counts as one token, as in the cross-entropy."""
    if isinstance(targets, torch.Tensor):
        rows = targets.flatten(0, -2)
        return torch.cat(
            [rows.new_zeros(0), *(torch.special.entr(rows[block].float()).sum(-1) for block in row_blocks(rows))]
        )
    counts = targets.row_offsets.diff()
    rows = torch.repeat_interleave(counts)
    tail = torch.special.entr(torch.where(counts < draft_size, targets.tail, 0.0).float())
    return tail.index_add(0, rows, torch.special.entr(targets.probs.float()))
