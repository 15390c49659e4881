"""The TTT unroll, plainly: every slot goes through every step. What the compact unroll is tested against."""

import torch

from eaglepipe.eagle.attention import causal_mask
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.sparse import DenseTargets, SparseTargets, bucketed_cross_entropy, densify
from eaglepipe.eagle.steps import shift_left_with_zero, step_masks
from eaglepipe.eagle.unroll import UnrollInputs, UnrollResult


def unroll_reference(draft: LlamaEagle3DraftModel, inputs: UnrollInputs, step_weights: torch.Tensor) -> UnrollResult:
    """Unroll K = len(step_weights) steps over all slots; `step_weights` float32 [K] scale the steps' loss sums."""
    ids, targets = inputs.input_ids, _dense_targets(inputs, draft.config.draft_vocab_size)
    num_steps = len(step_weights)
    state = draft.project_hidden_states(inputs.aux_hidden_states)
    mask = causal_mask(inputs.attention_mask, inputs.seq_lens, ids.shape[0], ids.shape[1], ids.device)
    cache: list[list[torch.Tensor]] = [[] for _ in range(2 * draft.config.num_hidden_layers)]
    counted = step_masks(inputs.position_mask, inputs.doc_remaining, num_steps)
    unbroken = torch.ones_like(inputs.position_mask)
    loss_sums, correct, hits = [], [], []
    for slots in counted:
        state = draft(ids, state, mask, inputs.position_ids, cache)
        logits = draft.compute_logits(state)
        loss_sums.append(torch.where(slots, bucketed_cross_entropy(logits, targets), 0.0).sum())
        matched = slots & (logits.argmax(dim=-1) == targets.probs.argmax(dim=-1))
        unbroken = unbroken & matched
        correct.append(matched.sum())
        hits.append(unbroken.sum())
        ids, targets = shift_left_with_zero(ids), _shift(targets)
    sums = torch.stack(loss_sums)
    return UnrollResult(
        loss=(sums * step_weights).sum(),
        loss_sums=sums.detach(),
        correct=torch.stack(correct),
        hits=torch.stack(hits),
    )


def _dense_targets(inputs: UnrollInputs, draft_size: int) -> DenseTargets:
    targets, mask = inputs.target_probs, inputs.position_mask
    if isinstance(targets, SparseTargets):
        probs, kept, tail = (_at_slots(rows, mask) for rows in densify(targets, draft_size))
        return DenseTargets(probs=probs, kept=kept, tail=tail)
    return DenseTargets(probs=targets if targets.dim() == 3 else _at_slots(targets, mask))


def _at_slots(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Rows [S, ...] at the S slots set in `mask` [B, T], zero elsewhere: [B, T, ...]."""
    spread = rows.new_zeros(*mask.shape, *rows.shape[1:])
    spread[mask] = rows
    return spread


def _shift(targets: DenseTargets) -> DenseTargets:
    """Every row of the targets one slot to the left, as ids and masks roll."""
    return DenseTargets(
        probs=shift_left_with_zero(targets.probs),
        kept=None if targets.kept is None else shift_left_with_zero(targets.kept),
        tail=None if targets.tail is None else shift_left_with_zero(targets.tail),
    )
