"""The attention of one TTT step, plainly: a masked causal block, and same-slot columns of the earlier steps.

Shapes: B rows, h query heads, kv key-value heads, T slots, d head size, k the step.
"""

from collections.abc import Sequence

import torch

from eaglepipe.errors import DraftError


def document_ids(seq_lens: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Return the document of each slot, int64 [B, T]; `seq_lens` [B, max_docs] zero padded, each row summing to T."""
    ends = seq_lens.long().cumsum(dim=1)
    slots = torch.arange(num_slots, device=seq_lens.device).expand(seq_lens.shape[0], num_slots)
    return torch.searchsorted(ends, slots.contiguous(), right=True)


def document_positions(seq_lens: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Return positions that restart at each document, int64 [B, T]."""
    lengths = seq_lens.long()
    starts = torch.cat((lengths.new_zeros(lengths.shape[0], 1), lengths.cumsum(dim=1)), dim=1)
    slots = torch.arange(num_slots, device=seq_lens.device)
    return slots - starts.gather(1, document_ids(lengths, num_slots).clamp(max=lengths.shape[1]))


def slot_positions(
    input_ids: torch.Tensor, position_ids: torch.Tensor | None, seq_lens: torch.Tensor | None
) -> torch.Tensor:
    """Return the positions of step 0, int64 [B, T]: `position_ids`, else from `seq_lens`, else 0..T-1."""
    batch, num_slots = input_ids.shape
    if position_ids is not None:
        return position_ids.long().expand(batch, num_slots)
    if seq_lens is not None:
        return document_positions(seq_lens, num_slots)
    return torch.arange(num_slots, device=input_ids.device).expand(batch, num_slots)


def causal_mask(
    attention_mask: torch.Tensor | None, seq_lens: torch.Tensor | None, batch: int, num_slots: int, device: torch.device
) -> torch.Tensor:
    """Return bool [B, 1, T, T], True where slot t may read slot s: s <= t, one document, s no padding; or s = t."""
    visible = torch.ones(num_slots, num_slots, dtype=torch.bool, device=device).tril().expand(batch, -1, -1)
    if seq_lens is not None:
        documents = document_ids(seq_lens, num_slots)
        visible = visible & (documents[:, :, None] == documents[:, None, :])
    if attention_mask is not None:
        visible = visible & attention_mask.bool()[:, None, :]
    return (visible | torch.eye(num_slots, dtype=torch.bool, device=device))[:, None]


def ttt_attention(
    queries: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Take one softmax over the causal block of step 0 and one column for each later step, of the same slot only.

    Args:
        queries: [B, h, T, d] of step k.
        keys, values: k + 1 tensors [B, kv, T, d], of steps 0..k.
        mask: bool [B, 1, T, T], True where the causal block may be read.

    Returns: [B, h, T, d]; scores and softmax in float32 at least.
    """
    groups = queries.shape[1] // keys[0].shape[1]
    keys = [key.repeat_interleave(groups, dim=1) for key in keys]
    values = [value.repeat_interleave(groups, dim=1) for value in values]
    block = (queries @ keys[0].transpose(-1, -2)).to(torch.promote_types(queries.dtype, torch.float32)) * scale
    block = block.masked_fill(~mask, -torch.inf)
    columns = [((queries * key).sum(-1, keepdim=True) * scale).to(block.dtype) for key in keys[1:]]
    weights = torch.cat((block, *columns), dim=-1).softmax(dim=-1).to(queries.dtype)
    num_slots = block.shape[-1]
    output = weights[..., :num_slots] @ values[0]
    for step, value in enumerate(values[1:]):
        output = output + weights[..., num_slots + step, None] * value
    return output


def check_right_padded(attention_mask: torch.Tensor) -> None:
    """Refuse a mask [B, T] with padding before or between real tokens: positions and causality would be wrong.

    Raises:
        DraftError: naming the first such row. Reads the mask on the host.
    """
    real = attention_mask.bool()
    bad = (real[:, 1:] & ~real[:, :-1]).any(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DraftError(f"attention_mask row {row} has padding before real tokens; the draft takes right padding only")
