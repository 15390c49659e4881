"""What an unroll takes and gives, whichever runs; symbols B rows, T slots, D draft vocabulary, K steps."""

from dataclasses import dataclass

import torch

from eaglepipe.eagle.losses import CROSS_ENTROPY, StepLoss
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets


@dataclass(frozen=True, kw_only=True)
class UnrollInputs:
    """One batch as the trainer hands it to an unroll, checked and shifted once."""

    input_ids: torch.Tensor  # int64 [B, T]
    attention_mask: torch.Tensor  # bool [B, T]
    loss_mask: torch.Tensor  # bool [B, T]
    position_mask: torch.Tensor  # bool [B, T]
    aux_hidden_states: torch.Tensor  # [B, T, A·Ht]
    target_probs: torch.Tensor | SparseTargets  # [B, T, D]; or S rows, of the slots set in position_mask, row by row
    position_ids: torch.Tensor  # int64 [B, T]
    seq_lens: torch.Tensor | None  # int64 [B, max_docs]
    doc_remaining: torch.Tensor | None  # int64 [B, T]
    draft_mass: torch.Tensor | None = None  # float32, one for each row of target_probs: [B, T] or [S]


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What the steps of an unroll minimise."""

    step_weights: torch.Tensor  # float32 [K], scale the steps' loss sums
    loss: StepLoss = CROSS_ENTROPY
    mean_alphas: torch.Tensor | None = None  # float32 [K], for `lambda`; None: the batch's own


@dataclass(frozen=True, kw_only=True)
class UnrollResult:
    """Sums over a batch for each step; only `loss` carries a gradient."""

    loss: torch.Tensor  # float32, sum over steps of step_weights[k] · loss_sums[k]
    loss_sums: torch.Tensor  # float32 [K]
    correct: torch.Tensor  # int64 [K]
    hits: torch.Tensor  # int64 [K]
    alpha_sums: torch.Tensor | None = None  # float32 [K], with an LK loss
    sampled_hits: torch.Tensor | None = None  # float32 [K], likewise


@dataclass(frozen=True, kw_only=True)
class HostMasks:
    """What a plan of the unroll is made from, on the host."""

    attention_mask: torch.Tensor  # bool [B, T]
    loss_mask: torch.Tensor  # bool [B, T]
    position_mask: torch.Tensor  # bool [B, T]
    seq_lens: torch.Tensor | None  # int64 [B, max_docs]
    doc_remaining: torch.Tensor | None  # int64 [B, T]
    row_offsets: torch.Tensor | None = None  # int64 [S + 1], of sparse targets
    id_bounds: torch.Tensor | None = None  # int64 [2], their lowest and highest id


def host_masks(inputs: UnrollInputs) -> HostMasks:
    """Bring the masks to the host in one copy: the only wait for a device in a forward that is not given them."""
    masks = (inputs.attention_mask, inputs.loss_mask, inputs.position_mask)
    given = (*masks, inputs.seq_lens, inputs.doc_remaining, *_sparse_bounds(inputs.target_probs))
    present = [tensor for tensor in given if tensor is not None]
    flat = torch.cat([tensor.reshape(-1).long() for tensor in present]).cpu()
    parts = iter(flat.split([tensor.numel() for tensor in present]))
    attention, loss, position, seq_lens, remaining, row_offsets, id_bounds = (
        None if tensor is None else next(parts).view(tensor.shape) for tensor in given
    )
    assert attention is not None and loss is not None and position is not None
    return HostMasks(
        attention_mask=attention.bool(),
        loss_mask=loss.bool(),
        position_mask=position.bool(),
        seq_lens=seq_lens,
        doc_remaining=remaining,
        row_offsets=row_offsets,
        id_bounds=id_bounds,
    )


def _sparse_bounds(targets: torch.Tensor | SparseTargets) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if isinstance(targets, torch.Tensor):
        return None, None
    return targets.row_offsets, torch.stack(targets.ids.aminmax()) if len(targets.ids) else targets.ids
