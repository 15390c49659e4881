"""The TTT unroll, plainly: every slot goes through every step. The compact unroll is tested against it."""

from typing import Any

import torch

from eaglepipe.eagle.packed_batch import at_slots, check_shape, shift_left_with_zero
from eaglepipe.eagle.unroll.drafts import first_step
from eaglepipe.eagle.unroll.interface import LossSettings, TrainerInputs, UnrollResult
from eaglepipe.eagle.unroll.sparse_rows import (
    DenseTargets,
    SparseTargets,
    bucketed_acceptance,
    bucketed_cross_entropy,
    densify,
)


def unroll_reference(draft: Any, inputs: TrainerInputs, settings: LossSettings, *, draft_size: int) -> UnrollResult:
    """Unroll K = len(settings.step_weights) steps over all slots of any draft that `check_methods` takes.

    Raises:
        DraftError: as `first_step`; logits that are not of the draft vocabulary's D = `draft_size` tokens.
    """
    batch, targets = inputs.batch, _dense_targets(inputs, draft_size)
    ids, mass = batch.input_ids, _mass_at_slots(inputs)
    state, run = draft.project_hidden_states(inputs.aux), first_step(draft, batch)
    unbroken, reached = torch.ones_like(batch.position_mask), torch.ones_like(mass)
    loss_sums, alpha_sums, sampled, correct, hits = [], [], [], [], []
    for step, slots in enumerate(batch.covered_steps(len(settings.step_weights))):
        state = run(ids, state)
        logits = draft.compute_logits(state)
        check_shape("the draft's logits", logits, (*batch.shape, draft_size))
        loss_sum, alphas = _loss_sums(logits, targets, mass, slots, settings, step=step)
        loss_sums.append(loss_sum)
        alpha_sums.append(alphas.sum())
        reached = reached * alphas
        sampled.append(reached.sum())
        matched = slots & (logits.argmax(dim=-1) == targets.top_tokens)
        unbroken = unbroken & matched
        correct.append(matched.sum())
        hits.append(unbroken.sum())
        ids, targets, mass = shift_left_with_zero(ids), _shift(targets), shift_left_with_zero(mass)
    sums = torch.stack(loss_sums)
    acceptance = {"alpha_sums": torch.stack(alpha_sums), "sampled_hits": torch.stack(sampled)}
    return UnrollResult(
        loss=(sums * settings.step_weights).sum(),
        loss_sums=sums.detach(),
        correct=torch.stack(correct),
        hits=torch.stack(hits),
        **(acceptance if settings.loss.needs_mass else {}),
    )


def _loss_sums(
    logits: torch.Tensor,
    targets: DenseTargets,
    mass: torch.Tensor,
    slots: torch.Tensor,
    settings: LossSettings,
    *,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss over the slots of one step, and their alphas [B, T] without gradient, 0 elsewhere."""
    losses = bucketed_cross_entropy(logits, targets)
    if not settings.loss.needs_mass:
        return torch.where(slots, losses, 0.0).sum(), torch.zeros_like(losses)
    alpha = bucketed_acceptance(logits, targets, mass)
    alphas = torch.where(slots, alpha.detach(), 0.0)
    mean = alphas.sum() / slots.sum().clamp(min=1) if settings.mean_alphas is None else settings.mean_alphas[step]
    losses = settings.loss.of_rows(losses, alpha, settings.loss.cross_entropy_weight(mean))
    return torch.where(slots, losses, 0.0).sum(), alphas


def _mass_at_slots(inputs: TrainerInputs) -> torch.Tensor:
    """Return the draft vocabulary's mass of each slot, [B, T]; 0 for slots without targets."""
    if inputs.draft_mass is None:
        return torch.zeros_like(inputs.batch.position_mask, dtype=torch.float32)
    mass = inputs.draft_mass
    return mass if mass.dim() == 2 else at_slots(mass, inputs.batch.position_mask)


def _dense_targets(inputs: TrainerInputs, draft_size: int) -> DenseTargets:
    targets, mask = inputs.whole_targets, inputs.batch.position_mask
    if isinstance(targets, SparseTargets):
        probs, kept, tail = (at_slots(rows, mask) for rows in densify(targets, draft_size))
        first = at_slots(targets.ids[targets.row_offsets[:-1]], mask) if targets.top_first else None
        return DenseTargets(probs=probs, kept=kept, tail=tail, first=first)
    return DenseTargets(probs=targets if targets.dim() == 3 else at_slots(targets, mask))


def _shift(targets: DenseTargets) -> DenseTargets:
    """Shift the targets one slot to the left, as ids and masks roll."""
    present = {name: tensor for name, tensor in vars(targets).items() if tensor is not None}
    return DenseTargets(**{name: shift_left_with_zero(tensor) for name, tensor in present.items()})
