"""The head over the loss rows of some steps, and the sums of an unroll that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.kernels.fused_head import DenseRows, HeadLoss, fused_head_loss
from eaglepipe.eagle.kernels.fused_lk import lk_head_loss
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.interface import LossSettings, UnrollResult
from eaglepipe.eagle.unroll.slot_plan import StepPlan
from eaglepipe.eagle.unroll.sparse_rows import SparseRows


@dataclass(frozen=True, kw_only=True)
class TargetSlice:
    """The target's distributions that the rows of some steps refer to."""

    rows: DenseRows | SparseRows
    draft_mass: torch.Tensor | None  # of these rows, with an LK loss


def head_result(
    draft: LlamaEagle3DraftModel,
    head_inputs: Sequence[torch.Tensor],
    targets: TargetSlice,
    *,
    settings: LossSettings,
    steps: Sequence[StepPlan],
    batch: PackedBatch,
    chunk_rows: int | None,
) -> UnrollResult:
    """Return loss and sums of steps from the normed states [r, H] of each one's loss rows."""
    head, alphas = _head_loss(draft, torch.cat(tuple(head_inputs)), targets, settings, steps, chunk_rows=chunk_rows)
    return _count(targets, steps, batch, head, alphas)


def _head_loss(
    draft: LlamaEagle3DraftModel,
    states: torch.Tensor,
    targets: TargetSlice,
    settings: LossSettings,
    steps: Sequence[StepPlan],
    *,
    chunk_rows: int | None,
) -> tuple[HeadLoss, torch.Tensor | None]:
    """Return the losses of all steps' rows from their normed states [R, H], and each row's alpha [R] if LK."""
    rows_per_step = [len(step.rows) for step in steps]
    weights = zip(settings.step_weights, rows_per_step, strict=True)
    arguments = (
        states,
        draft.lm_head.weight,
        targets.rows,
        torch.cat([step.row_targets for step in steps]),
        torch.cat([weight.expand(count) for weight, count in weights]),
    )
    if not settings.loss.needs_mass:
        return fused_head_loss(*arguments, chunk_rows=chunk_rows), None
    assert targets.draft_mass is not None
    return lk_head_loss(
        *arguments,
        draft_mass=targets.draft_mass.flatten(),
        loss=settings.loss,
        rows_per_step=rows_per_step,
        mean_alphas=settings.mean_alphas,
        chunk_rows=chunk_rows,
    )


@torch.no_grad()
def _count(
    targets: TargetSlice, steps: Sequence[StepPlan], batch: PackedBatch, head: HeadLoss, alphas: torch.Tensor | None
) -> UnrollResult:
    """Add up each step from its loss rows; a slot without a row at a step matches nothing and is not reached there."""
    top_tokens = targets.rows.top_tokens()
    rows_per_step = [len(step.rows) for step in steps]
    unbroken = torch.ones_like(batch.position_mask).flatten()
    correct, hits = [], []
    for step, predicted in zip(steps, head.predicted.split(rows_per_step), strict=True):
        matched = predicted == top_tokens[step.row_targets]
        correct.append(matched.sum())
        unbroken = unbroken & torch.zeros_like(unbroken).index_copy_(0, step.row_slots, matched)
        hits.append(unbroken.sum())
    result = UnrollResult(
        loss=head.loss,
        loss_sums=torch.stack([losses.sum() for losses in head.row_losses.split(rows_per_step)]),
        correct=torch.stack(correct),
        hits=torch.stack(hits),
    )
    if alphas is None:
        return result
    reached, sums, sampled = torch.ones_like(unbroken, dtype=alphas.dtype), [], []
    for step, step_alphas in zip(steps, alphas.split(rows_per_step), strict=True):
        reached = reached * torch.zeros_like(reached).index_copy_(0, step.row_slots, step_alphas)
        sums.append(step_alphas.sum())
        sampled.append(reached.sum())
    return replace(result, alpha_sums=torch.stack(sums), sampled_hits=torch.stack(sampled))
