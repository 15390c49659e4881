"""The LK losses for the fused head: acceptance, loss and gradient of a chunk of rows, in place of its logits.

With q = softmax(logits), b[v] = 1 where q[v] < p_full[v] and s = sum_v b[v] q[v], alpha's gradient is q[v] (b[v] - s).
Symbols: R loss rows of all TTT steps, r rows of a chunk, N target rows, D draft vocabulary, K steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from eaglepipe.eagle.kernels.fused_head import DenseRows, HeadLoss, fused_head_loss
from eaglepipe.eagle.kernels.row_ops import RowLosses, row_blocks, softmax_in_place
from eaglepipe.eagle.losses import StepLoss, floored
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SplitRows, split_kept


@dataclass(frozen=True, kw_only=True)
class LKRows:
    """A `TargetRows` whose row r is loss row r, so that rows of different steps can weigh cross-entropy differently."""

    targets: DenseRows | SparseRows
    target_rows: torch.Tensor  # int64 [R]
    draft_mass: torch.Tensor  # [N]
    loss: StepLoss
    weights: torch.Tensor  # float32 [R], of cross-entropy; 0 for `alpha`
    alphas: torch.Tensor  # float32 [R], filled in as rows are asked for

    def losses(self, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
        """As `TargetRows`, of loss rows `rows` [r]."""
        indices = self.target_rows.index_select(0, rows)
        mass = self.draft_mass.index_select(0, indices).to(logits.dtype)
        weight = self.weights.index_select(0, rows).to(logits.dtype)
        if isinstance(self.targets, SparseRows):
            losses, alphas = self._sparse(split_kept(self.targets, logits, indices), mass, weight, dtype)
        else:
            losses, alphas = self._dense(logits, self.targets.probs, indices, mass, weight)
        self.alphas.index_copy_(0, rows, alphas.to(self.alphas.dtype))
        return replace(losses, gradient=losses.gradient.to(dtype))

    def _dense(
        self, logits: torch.Tensor, probs: torch.Tensor, indices: torch.Tensor, mass: torch.Tensor, weight: torch.Tensor
    ) -> tuple[RowLosses, torch.Tensor]:
        losses, alphas = logits.new_empty(len(indices)), logits.new_empty(len(indices))
        predicted = torch.empty_like(indices)
        for block in row_blocks(logits):
            block_probs = probs.index_select(0, indices[block]).to(logits.dtype)
            losses[block], alphas[block], predicted[block] = self._dense_block(
                logits[block], block_probs, mass[block], weight[block]
            )
        return RowLosses(losses=losses, predicted=predicted, gradient=logits), alphas

    def _dense_block(
        self, logits: torch.Tensor, probs: torch.Tensor, mass: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total, agreement = probs.sum(dim=-1), torch.linalg.vecdot(logits, probs)
        log_partition, _, predicted = softmax_in_place(logits)
        full = probs * mass[:, None]
        below = logits < full
        alphas = torch.minimum(logits, full).sum(dim=-1)
        raising = torch.where(below, logits, 0.0)
        slope = self._slope(alphas, weight)
        scale = weight * total - slope * raising.sum(dim=-1)
        logits.mul_(scale[:, None]).addcmul_(raising, slope[:, None]).addcmul_(probs, weight[:, None], value=-1)
        return self.loss.of_rows(log_partition * total - agreement, alphas, weight), alphas, predicted

    def _sparse(
        self, split: SplitRows, mass: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype
    ) -> tuple[RowLosses, torch.Tensor]:
        kept = split.kept
        q, q_tail = split.kept_shares(), split.tail_share()
        full, full_tail = kept.probs * kept.of_rows(mass), kept.tail * mass
        below, tail_below = q < full, q_tail < full_tail
        alphas = kept.sum(torch.minimum(q, full)) + torch.minimum(q_tail, full_tail)
        raising = kept.sum(q * below) + q_tail * tail_below
        slope = self._slope(alphas, weight)
        scale = weight * split.mass - slope * raising
        gradient = split.tail.scaled(q_tail * (scale + slope * tail_below) - weight * kept.tail, dtype)
        own = q * (kept.of_rows(scale) + kept.of_rows(slope) * below) - kept.of_rows(weight) * kept.probs
        kept.put(gradient, own.to(dtype))
        losses = self.loss.of_rows(split.cross_entropy(), alphas, weight)
        return RowLosses(losses=losses, predicted=split.predicted, gradient=gradient), alphas

    def _slope(self, alphas: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return d loss / d alpha of each row."""
        return -floored(alphas).reciprocal() if self.loss.kind == "alpha" else weight - 1


def lk_head_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: DenseRows | SparseRows,
    target_rows: torch.Tensor,
    row_weights: torch.Tensor,
    *,
    draft_mass: torch.Tensor,
    loss: StepLoss,
    rows_per_step: Sequence[int],
    mean_alphas: torch.Tensor | None,
    chunk_rows: int | None,
) -> tuple[HeadLoss, torch.Tensor]:
    """Return `fused_head_loss` of an LK loss, and each row's alpha, float32 [R].

    Args:
        draft_mass: [N], share of each target row's full distribution inside the draft vocabulary.
        rows_per_step: how the R rows follow each other by TTT step.
        mean_alphas: [K], from which w of `lambda` is made; None: these rows' own, for which the head runs once more.
    """

    def run(means: torch.Tensor) -> tuple[HeadLoss, torch.Tensor]:
        weights = [w.expand(n) for w, n in zip(loss.cross_entropy_weight(means), rows_per_step, strict=True)]
        rows = LKRows(
            targets=targets,
            target_rows=target_rows,
            draft_mass=draft_mass,
            loss=loss,
            weights=torch.cat(weights),
            alphas=torch.empty_like(row_weights, dtype=torch.float32),
        )
        order = torch.arange(len(target_rows), device=target_rows.device)
        head = fused_head_loss(hidden_states, weight, rows, order, row_weights, chunk_rows=chunk_rows)
        return head, rows.alphas

    if mean_alphas is None:
        mean_alphas = row_weights.new_zeros(len(rows_per_step))
        if loss.kind == "lambda":
            with torch.no_grad():
                alphas = run(mean_alphas)[1].split(list(rows_per_step))
            mean_alphas = torch.stack([step.sum() / max(1, len(step)) for step in alphas])
    return run(mean_alphas.to(row_weights))
