"""The TTT unroll, plainly: every slot goes through every step. What the compact unroll is tested against."""

import torch

from eaglepipe.eagle.attention import causal_mask
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.losses import soft_cross_entropy
from eaglepipe.eagle.steps import shift_left_with_zero, step_masks
from eaglepipe.eagle.unroll import UnrollInputs, UnrollResult


def unroll_reference(draft: LlamaEagle3DraftModel, inputs: UnrollInputs, step_weights: torch.Tensor) -> UnrollResult:
    """Unroll K = len(step_weights) steps over all slots; `step_weights` float32 [K] scale the steps' loss sums."""
    ids, probs = inputs.input_ids, _dense_probs(inputs)
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
        loss_sums.append(torch.where(slots, soft_cross_entropy(logits, probs), 0.0).sum())
        matched = slots & (logits.argmax(dim=-1) == probs.argmax(dim=-1))
        unbroken = unbroken & matched
        correct.append(matched.sum())
        hits.append(unbroken.sum())
        ids, probs = shift_left_with_zero(ids), shift_left_with_zero(probs)
    sums = torch.stack(loss_sums)
    return UnrollResult(
        loss=(sums * step_weights).sum(),
        loss_sums=sums.detach(),
        correct=torch.stack(correct),
        hits=torch.stack(hits),
    )


def _dense_probs(inputs: UnrollInputs) -> torch.Tensor:
    rows = inputs.target_probs
    if rows.dim() == 3:
        return rows
    dense = rows.new_zeros(*inputs.position_mask.shape, rows.shape[-1])
    dense[inputs.position_mask] = rows
    return dense
