"""The plan of the compact unroll: index tables, made on the host from masks alone.

Slots are coupled only through step 0's keys and values, so a slot is *active* at step k if it has supervision left at k
or later. Active slots form spans, contiguous inside one document; a span keeps its start and loses slots at its end.
"""

from dataclasses import dataclass

import torch

from eaglepipe.eagle.kernels.transfer import to_device
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.attention.plain import document_ids
from eaglepipe.eagle.unroll.span_tables import SlotSpan, StepSpans, ranges

MERGED_GAP = 16
"""Idle slots between two spans of one document that cost less to compute than to leave out."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step; n active slots, r of them in its loss. A slot's number is flat, row by row."""

    spans: StepSpans
    slots: torch.Tensor  # int64 [n], the active slots
    kept: torch.Tensor | None  # int64 [n], their indices among the step before's; None: all of them
    sources: torch.Tensor  # int64 [n], indices of this step's tokens among step 0's active slots
    rows: torch.Tensor  # int64 [r], indices among the active slots
    row_slots: torch.Tensor  # int64 [r], the same as slots
    row_targets: torch.Tensor  # int64 [r], rows of the target probabilities


@dataclass(frozen=True, kw_only=True)
class UnrollPlan:
    """All steps; C cached slots: those whose step 0 key some active slot reads."""

    cached: torch.Tensor  # int64 [C], slots
    documents: StepSpans  # each document, as far as it is cached
    active: torch.Tensor  # int64 [n of step 0], indices among the cached slots
    steps: tuple[StepPlan, ...]


def plan_unroll(batch: PackedBatch, num_steps: int, *, probs_are_compact: bool, device: torch.device) -> UnrollPlan:
    """Plan `num_steps` steps for a batch on the host. Tables go to `device`; nothing is read back from it."""
    covered = [mask.flatten() for mask in batch.covered_steps(num_steps)]
    active = remaining_steps(covered)
    starts_of = document_starts(batch)
    firsts, lasts = _spans(active[0], starts_of)
    ends = [span_ends(mask, firsts, lasts) for mask in active]
    starts = starts_of[firsts]
    is_last = torch.cat((starts[1:] != starts[:-1], torch.ones(min(1, len(starts)), dtype=torch.bool)))
    cached = ranges(starts[is_last], ends[0][is_last])
    num_slots = batch.position_mask.numel()
    place = _indices(cached, num_slots)
    index_in_first = _indices(ranges(firsts, ends[0]), num_slots)
    target_row = torch.arange(num_slots)
    if probs_are_compact:
        target_row = batch.position_mask.flatten().long().cumsum(0) - 1

    def plan_step(step: int) -> StepPlan:
        slots = ranges(firsts, ends[step])
        row_slots = covered[step].nonzero()[:, 0]
        return StepPlan(
            spans=StepSpans.on(device, _as_spans(place, starts, firsts, ends[step])),
            slots=to_device(slots, device),
            kept=kept_slots(firsts, ends[step - 1], ends[step], device) if step else None,
            sources=to_device(index_in_first[(slots + step).clamp(max=num_slots - 1)], device),
            rows=to_device(_indices(slots, num_slots)[row_slots], device),
            row_slots=to_device(row_slots, device),
            row_targets=to_device(target_row[row_slots + step], device),
        )

    return UnrollPlan(
        cached=to_device(cached, device),
        documents=StepSpans.on(device, _as_spans(place, starts[is_last], starts[is_last], ends[0][is_last])),
        active=to_device(place[ranges(firsts, ends[0])], device),
        steps=tuple(plan_step(step) for step in range(num_steps)),
    )


def remaining_steps(covered: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the slots with supervision left, for each step."""
    left = list(covered)
    for step in range(len(left) - 2, -1, -1):
        left[step] = left[step] | left[step + 1]
    return left


def document_starts(batch: PackedBatch) -> torch.Tensor:
    """Return the first slot of each slot's document: int64 [B·T]."""
    documents = torch.zeros(batch.shape, dtype=torch.int64)
    if batch.seq_lens is not None:
        documents = document_ids(batch.seq_lens, batch.shape[1])
    begins = torch.ones(batch.shape, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    slots = torch.arange(begins.numel())
    return torch.where(begins.flatten(), slots, 0).cummax(0).values


def _spans(active: torch.Tensor, document_starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first and last slot of each span, int64 [R]; spans closer than MERGED_GAP in one document are one."""
    slots = active.nonzero()[:, 0]
    if not len(slots):
        return slots, slots
    documents = document_starts[slots]
    breaks = (slots.diff() > MERGED_GAP + 1) | (documents.diff() != 0)
    edge = torch.ones(1, dtype=torch.bool)
    return slots[torch.cat((edge, breaks))], slots[torch.cat((breaks, edge))]


def span_ends(active: torch.Tensor, firsts: torch.Tensor, lasts: torch.Tensor) -> torch.Tensor:
    """Return one past each span's last active slot, int64 [R]; its first slot if none is left."""
    ends = torch.where(active, torch.arange(1, len(active) + 1), 0).cummax(0).values
    return torch.maximum(ends[lasts], firsts)


def _indices(slots: torch.Tensor, num_slots: int) -> torch.Tensor:
    """Return the index of each slot in `slots`, int64 [B·T]; 0 for those that are not in it."""
    places = torch.zeros(num_slots, dtype=torch.int64)
    places[slots] = torch.arange(len(slots))
    return places


def kept_slots(
    firsts: torch.Tensor, ends_before: torch.Tensor, ends: torch.Tensor, device: torch.device
) -> torch.Tensor | None:
    if torch.equal(ends_before, ends):
        return None
    counts_before = ends_before - firsts
    offsets = counts_before.cumsum(0) - counts_before
    return to_device(ranges(offsets, offsets + ends - firsts), device)


def _as_spans(
    place: torch.Tensor, starts: torch.Tensor, firsts: torch.Tensor, ends: torch.Tensor
) -> tuple[SlotSpan, ...]:
    columns = (place[starts].tolist(), place[firsts].tolist(), (ends - firsts).tolist())
    return tuple(SlotSpan(document=d, first=f, count=c) for d, f, c in zip(*columns, strict=True) if c)
