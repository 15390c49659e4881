"""Which slots count at which TTT step: ids, probabilities and masks roll left, packing gates, chains break.

Masks are bool [B, T] over shifted slots; K steps.
"""

from collections.abc import Iterator

import torch


def shift_left_with_zero(tensor: torch.Tensor) -> torch.Tensor:
    """[B, T, ...] -> the same, one slot to the left, with a zero tail."""
    return torch.cat((tensor[:, 1:], torch.zeros_like(tensor[:, :1])), dim=1)


def step_masks(mask: torch.Tensor, doc_remaining: torch.Tensor | None, num_steps: int) -> Iterator[torch.Tensor]:
    """For each step k, slots t with `mask[t + k]` and, where packed, `k < doc_remaining[t]`: bool [B, T]."""
    for step in range(num_steps):
        yield mask if doc_remaining is None else mask & (step < doc_remaining)
        mask = shift_left_with_zero(mask)


def prefix_masks(mask: torch.Tensor, doc_remaining: torch.Tensor | None, num_steps: int) -> Iterator[torch.Tensor]:
    """For each step k, slots that count at every step up to k: bool [B, T]."""
    chain = torch.ones_like(mask)
    for counted in step_masks(mask, doc_remaining, num_steps):
        chain = chain & counted
        yield chain


def count_per_step(masks: Iterator[torch.Tensor]) -> torch.Tensor:
    """Slots set in each mask: int64 [K]."""
    return torch.stack([mask.sum() for mask in masks])


def count_valid_per_step(
    position_mask: torch.Tensor, doc_remaining: torch.Tensor | None, ttt_steps: int
) -> torch.Tensor:
    """The loss counts that `Eagle3TrainerModule.forward` will report for this batch.

    Args:
        position_mask: [B, T] or [B, T, 1], any dtype, shifted once as the trainer takes it.
        doc_remaining: [B, T] or None.

    Returns: int64 [K].
    """
    return count_per_step(step_masks(as_slot_mask(position_mask), doc_remaining, ttt_steps))


def as_slot_mask(mask: torch.Tensor) -> torch.Tensor:
    """[B, T] or [B, T, 1] of any dtype -> bool [B, T]."""
    return (mask.squeeze(-1) if mask.dim() == 3 else mask).bool()
