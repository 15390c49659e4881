"""Documents packed into rows, as every trainer module takes them, and the masks that follow from their bounds.

Slot t of a document holds the target's states of token t, the id of token t + 1, and the supervision of what the target
predicts after that token. It counts at step k while slot t + k is supervised and lies in the same document.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from eaglepipe.eagle.sequence_share import SequenceShare
from eaglepipe.eagle.unroll.attention.plain import causal_mask, slot_positions
from eaglepipe.errors import DraftError


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """B rows of T slots: documents one after the other, then padding.

    `loss_mask` marks supervised slots, `position_mask` the covered ones among them: those whose target top-1 is in the
    draft vocabulary.
    """

    input_ids: torch.Tensor  # int64 [B, T], shifted left once
    attention_mask: torch.Tensor  # bool [B, T], real tokens
    loss_mask: torch.Tensor  # bool [B, T], shifted left once
    position_mask: torch.Tensor  # bool [B, T], shifted left once
    position_ids: torch.Tensor  # int64 [B, T], restarting at each document
    seq_lens: torch.Tensor | None = None  # int64 [B, max_docs], summing to T with padding in the last; None: one a row
    doc_remaining: torch.Tensor | None = None  # int64 [B, T], tokens left in the document; None: no bound but T
    host_copy: "PackedBatch | None" = None  # the same batch on the host, if it was made there
    share: SequenceShare | None = None  # of the process that computes a part of the slots; None: it computes all

    @classmethod
    def of(  # noqa: PLR0917 - in the order of the trainers' forwards
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        loss_mask: torch.Tensor,
        position_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        seq_lens: torch.Tensor | None = None,
        doc_remaining: torch.Tensor | None = None,
    ) -> "PackedBatch":
        """Build a batch from tensors of any integer dtype, masks [B, T] or [B, T, 1].

        Without `position_mask` all supervised slots are covered; without `position_ids` they follow from `seq_lens`,
        else run from 0 to T - 1.

        Raises:
            DraftError: a shape does not fit, naming the argument.
        """
        if input_ids.dim() != 2 or 0 in input_ids.shape:
            raise DraftError(f"input_ids must be [batch, tokens], not {tuple(input_ids.shape)}")
        shape = tuple(input_ids.shape)
        check_shape("attention_mask", attention_mask, shape)
        check_shape("loss_mask", loss_mask, shape, (*shape, 1))
        check_shape("position_mask", position_mask, shape, (*shape, 1))
        check_shape("position_ids", position_ids, shape)
        check_shape("doc_remaining", doc_remaining, shape)
        if seq_lens is not None and (seq_lens.dim() != 2 or seq_lens.shape[0] != shape[0]):
            raise DraftError(f"seq_lens has shape {tuple(seq_lens.shape)}; expected [{shape[0]}, documents]")
        return cls(
            input_ids=input_ids.long(),
            attention_mask=attention_mask.bool(),
            loss_mask=as_slot_mask(loss_mask),
            position_mask=as_slot_mask(loss_mask if position_mask is None else position_mask),
            position_ids=slot_positions(input_ids, position_ids, seq_lens),
            seq_lens=seq_lens,
            doc_remaining=doc_remaining,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        num_rows, num_slots = self.input_ids.shape
        return num_rows, num_slots

    @property
    def device(self) -> torch.device:
        """The device of all tensors but the host copy's."""
        return self.input_ids.device

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are present, by name, without the host copy's."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def pin_memory(self) -> "PackedBatch":
        """Return a copy in page-locked memory, from which a transfer to a device does not block."""
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self.tensors().items()}
        return replace(self, **pinned, host_copy=self)

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the batch on a device; a batch of the host goes along as `host_copy`."""
        if self.device == device:
            return self
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        host_copy = self if self.host_copy is None and self.device.type == "cpu" else self.host_copy
        return replace(self, **moved, host_copy=host_copy)

    def on_host(self) -> "PackedBatch":
        """Return the batch on the host; without `host_copy` it is fetched in one transfer, for which the host waits."""
        if self.host_copy is not None:
            return self.host_copy
        if self.device.type == "cpu":
            return self
        tensors = self.tensors()
        flat = torch.cat([tensor.reshape(-1).long() for tensor in tensors.values()]).cpu()
        parts = flat.split([tensor.numel() for tensor in tensors.values()])
        fetched: dict[str, Any] = {
            name: part.view(tensor.shape).to(tensor.dtype)
            for (name, tensor), part in zip(tensors.items(), parts, strict=True)
        }
        return replace(self, **fetched)

    def causal_mask(self) -> torch.Tensor:
        """Return bool [B, 1, T, T], True where slot t may read slot s: s <= t, in one document, no padding."""
        return causal_mask(self.attention_mask, self.seq_lens, *self.shape, self.device)

    def covered_steps(self, num_steps: int) -> Iterator[torch.Tensor]:
        """Yield the slots in the loss of each step, on this process: bool [B, T]."""
        return self._own(step_masks(self.position_mask, self.doc_remaining, num_steps))

    def supervised_chains(self, num_steps: int) -> Iterator[torch.Tensor]:
        """Yield for each step k the slots of this process that are supervised at every step up to k: bool [B, T]."""
        chain = torch.ones_like(self.loss_mask)
        for supervised in self._own(step_masks(self.loss_mask, self.doc_remaining, num_steps)):
            chain = chain & supervised
            yield chain

    @property
    def owned(self) -> torch.Tensor:
        """The slots that this process computes, bool [B, T]."""
        if self.share is None:
            return torch.ones_like(self.loss_mask)
        return self.share.owned(self.shape).to(self.device)

    def _own(self, masks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        if self.share is None:
            return masks
        owned = self.owned
        return (mask & owned for mask in masks)


def step_masks(mask: torch.Tensor, doc_remaining: torch.Tensor | None, num_steps: int) -> Iterator[torch.Tensor]:
    """Yield for each step k the slots t with `mask[t + k]` and, if packed, `k < doc_remaining[t]`: bool [B, T]."""
    for step in range(num_steps):
        yield mask if doc_remaining is None else mask & (step < doc_remaining)
        mask = shift_left_with_zero(mask)


def count_slots(masks: Iterable[torch.Tensor]) -> torch.Tensor:
    """Count the slots set in each of K masks: int64 [K]."""
    return torch.stack([mask.sum() for mask in masks])


def shift_left_with_zero(tensor: torch.Tensor) -> torch.Tensor:
    """Shift a tensor [B, T, ...] one slot to the left, with a zero tail."""
    return torch.cat((tensor[:, 1:], torch.zeros_like(tensor[:, :1])), dim=1)


def at_slots(rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return rows [S, ...] at the S slots set in `mask` [B, T], zero elsewhere: [B, T, ...]."""
    spread = rows.new_zeros(*mask.shape, *rows.shape[1:])
    spread[mask] = rows
    return spread


def as_slot_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask [B, T] or [B, T, 1] of any dtype as bool [B, T]."""
    return (mask.squeeze(-1) if mask.dim() == 3 else mask).bool()


def check_shape(name: str, tensor: torch.Tensor | None, *expected: tuple[int, ...]) -> None:
    """Refuse a tensor that is present and has none of the expected shapes.

    Raises:
        DraftError: naming the argument, its shape and the expected ones.
    """
    if tensor is not None and tuple(tensor.shape) not in expected:
        shapes = " or ".join(str(list(shape)) for shape in expected)
        raise DraftError(f"{name} has shape {list(tensor.shape)}; expected {shapes}")
