"""KL of the draft from the target over P-EAGLE's elements: the fused head's cross-entropy less the target's entropy."""

import torch

from eaglepipe.eagle.fused_head import DenseRows
from eaglepipe.eagle.row_ops import row_blocks
from eaglepipe.eagle.sparse import SparseRows, SparseTargets, top_tokens


def target_rows(targets: torch.Tensor | SparseTargets, max_entries: int) -> DenseRows | SparseRows:
    """Targets as the fused head reads them; `max_entries` of a row of sparse ones."""
    if isinstance(targets, SparseTargets):
        return SparseRows(targets=targets, max_entries=max_entries)
    return DenseRows(probs=targets.flatten(0, -2))


def target_tokens(targets: torch.Tensor | SparseTargets, max_entries: int) -> torch.Tensor:
    """The target's greedy draft token for each row, int64."""
    if isinstance(targets, SparseTargets):
        return top_tokens(targets, max_entries)
    return targets.flatten(0, -2).max(dim=-1).indices


def target_entropies(targets: torch.Tensor | SparseTargets, draft_size: int) -> torch.Tensor:
    """H(p) = -sum_v p[v] log p[v] of each row, float32; a tail counts as one token, as it does in the cross-entropy."""
    if isinstance(targets, torch.Tensor):
        rows = targets.flatten(0, -2)
        return torch.cat([rows.new_zeros(0), *(torch.special.entr(rows[block]).sum(-1) for block in row_blocks(rows))])
    counts = targets.row_offsets.diff()
    rows = torch.repeat_interleave(counts)
    tail = torch.special.entr(torch.where(counts < draft_size, targets.tail, 0.0).float())
    return tail.index_add(0, rows, torch.special.entr(targets.probs.float()))
