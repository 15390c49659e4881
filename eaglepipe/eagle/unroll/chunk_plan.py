"""The plan of an unroll that goes through its slots in chunks, or shares them with other processes.

Every slot of a chunk takes all its steps before the next chunk begins: slots meet in step 0's keys alone, which are
computed first. A share is the same with the slots of other processes left out; their keys are gathered.

C slots whose keys this process computes, G those of all processes; indices are flat slot numbers unless said otherwise.
"""

from dataclasses import dataclass

import torch

from eaglepipe.eagle.kernels.transfer import to_device
from eaglepipe.eagle.packed_batch import PackedBatch, step_masks
from eaglepipe.eagle.unroll.slot_plan import (
    MERGED_GAP,
    StepPlan,
    document_starts,
    kept_slots,
    remaining_steps,
    span_ends,
)
from eaglepipe.eagle.unroll.span_tables import SlotSpan, StepSpans, ranges


@dataclass(frozen=True, kw_only=True)
class ContextChunk:
    """Slots `rows` of the C, and the keys that each of them reads in a layer before the last."""

    rows: slice
    spans: StepSpans


@dataclass(frozen=True, kw_only=True)
class SlotChunk:
    """Slots that take all their steps together; E tokens that they read."""

    tokens: torch.Tensor  # int64 [E], the slots that hold them
    active: torch.Tensor  # int64 [n of step 0], indices among the C
    steps: tuple[StepPlan, ...]  # `sources` among the tokens; `row_targets` from `first_target` on
    first_target: int
    end_target: int

    @property
    def num_targets(self) -> int:
        """Rows of the target probabilities that the chunk reads."""
        return self.end_target - self.first_target


@dataclass(frozen=True, kw_only=True)
class ChunkedPlan:
    """All chunks of this process."""

    cached: torch.Tensor  # int64 [C], slots
    aux_rows: torch.Tensor  # int64 [C], indices among the aux states that this process has
    gathered: torch.Tensor | None  # int64 [G], rows of the gathered keys; None: this process has all
    most_cached: int  # C of the process that has most
    context: tuple[ContextChunk, ...]
    chunks: tuple[SlotChunk, ...]


def plan_chunks(
    batch: PackedBatch, num_steps: int, *, chunk_slots: int, probs_are_compact: bool, device: torch.device
) -> ChunkedPlan:
    """Plan `num_steps` steps of a batch on the host, with at most `chunk_slots` of the C in a chunk."""
    planner = _Planner(batch, num_steps, probs_are_compact=probs_are_compact, device=device)
    cached = planner.own_cached.nonzero()[:, 0]
    aux_rows = cached
    if batch.share is not None:
        aux_rows = (planner.owned.long().cumsum(0) - 1)[cached]
    parts = [slice(start, min(start + chunk_slots, len(cached))) for start in range(0, len(cached), chunk_slots)]
    parts = parts or [slice(0, 0)]
    gathered, most = planner.gathered()
    return ChunkedPlan(
        cached=to_device(cached, device),
        aux_rows=to_device(aux_rows, device),
        gathered=gathered,
        most_cached=most,
        context=tuple(ContextChunk(rows=rows, spans=planner.runs(cached[rows])) for rows in parts),
        chunks=tuple(planner.chunk(cached[rows]) for rows in parts),
    )


class _Planner:
    def __init__(self, batch: PackedBatch, num_steps: int, *, probs_are_compact: bool, device: torch.device) -> None:
        self._device, self._share, self._shape = device, batch.share, batch.shape
        self._num_slots = batch.position_mask.numel()
        everywhere = step_masks(batch.position_mask, batch.doc_remaining, num_steps)
        self._covered = [mask.flatten() for mask in everywhere]
        self._starts = document_starts(batch)
        self.owned = batch.owned.flatten()
        self._cached = self._read_by_any()
        self.own_cached = self._cached & self.owned
        self._place = _counted_before(self._cached)
        self._own_place = _counted_before(self.own_cached)
        self._target_row = torch.arange(self._num_slots)
        if probs_are_compact:
            rows = batch.position_mask.flatten()
            rows = rows if self._share is None else rows & self._share.read(batch.shape).flatten()
            self._target_row = rows.long().cumsum(0) - 1

    def _read_by_any(self) -> torch.Tensor:
        """Slots before the last active one of their document, over all processes."""
        active = remaining_steps(self._covered)[0]
        slots = active.nonzero()[:, 0]
        starts = self._starts[slots]
        is_last = torch.cat((starts[1:] != starts[:-1], torch.ones(min(1, len(slots)), dtype=torch.bool)))
        return _marked(ranges(starts[is_last], slots[is_last] + 1), self._num_slots)

    def gathered(self) -> tuple[torch.Tensor | None, int]:
        if self._share is None:
            return None, int(self._cached.sum())
        owners = self._share.owners(self._shape).flatten()[self._cached]
        counts = torch.bincount(owners, minlength=self._share.size)
        most = int(counts.max()) if len(owners) else 0
        order = owners.argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = ranges(torch.arange(self._share.size) * most, torch.arange(self._share.size) * most + counts)
        return to_device(places, self._device), most

    def runs(self, slots: torch.Tensor) -> StepSpans:
        """Slots of the C as spans without gaps, each in one document."""
        if not len(slots):
            return StepSpans.on(self._device, ())
        begins = torch.ones(len(slots), dtype=torch.bool)
        begins[1:] = (slots.diff() != 1) | (self._starts[slots].diff() != 0)
        firsts = slots[begins]
        return self._spans(firsts, slots[torch.cat((begins[1:], begins[:1]))] + 1)

    def _spans(self, firsts: torch.Tensor, ends: torch.Tensor) -> StepSpans:
        columns = (self._place[self._starts[firsts]], self._place[firsts], ends - firsts)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return StepSpans.on(self._device, tuple(SlotSpan(document=d, first=f, count=c) for d, f, c in rows if c))

    def chunk(self, slots: torch.Tensor) -> SlotChunk:
        inside = _marked(slots, self._num_slots)
        covered = [mask & inside for mask in self._covered]
        active = remaining_steps(covered)
        firsts, lasts = self._bounds(active[0], inside)
        ends = [span_ends(mask, firsts, lasts) for mask in active]
        step_slots = [ranges(firsts, end) for end in ends]
        read = [self._later(own, step) for step, own in enumerate(step_slots)]
        tokens = _marked(torch.cat(read), self._num_slots)
        token_place = _counted_before(tokens)
        row_slots = [mask.nonzero()[:, 0] for mask in covered]
        targets = [self._target_row[own + step] for step, own in enumerate(row_slots)]
        read_rows = torch.cat(targets)
        first = int(read_rows.min()) if len(read_rows) else 0

        def place(numbers: torch.Tensor) -> torch.Tensor:
            return to_device(numbers, self._device)

        def plan_step(step: int) -> StepPlan:
            own = step_slots[step]
            return StepPlan(
                spans=self._spans(firsts, ends[step]),
                slots=place(own),
                kept=kept_slots(firsts, ends[step - 1], ends[step], self._device) if step else None,
                sources=place(token_place[read[step]]),
                rows=place(_counted_before(_marked(own, self._num_slots))[row_slots[step]]),
                row_slots=place(row_slots[step]),
                row_targets=place(targets[step] - first),
            )

        return SlotChunk(
            tokens=place(tokens.nonzero()[:, 0]),
            active=place(self._own_place[step_slots[0]]),
            steps=tuple(plan_step(step) for step in range(len(covered))),
            first_target=first,
            end_target=int(read_rows.max()) + 1 if len(read_rows) else 0,
        )

    def _later(self, slots: torch.Tensor, step: int) -> torch.Tensor:
        return (slots + step).clamp(max=self._num_slots - 1)

    def _bounds(self, active: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First and last slot of each span, as `slot_plan` makes them; no span holds a slot outside."""
        slots = active.nonzero()[:, 0]
        if not len(slots):
            return slots, slots
        left_out = (~inside).long().cumsum(0)[slots].diff() != 0
        breaks = left_out | (slots.diff() > MERGED_GAP + 1) | (self._starts[slots].diff() != 0)
        edge = torch.ones(1, dtype=torch.bool)
        return slots[torch.cat((edge, breaks))], slots[torch.cat((breaks, edge))]


def _marked(slots: torch.Tensor, num_slots: int) -> torch.Tensor:
    return torch.zeros(num_slots, dtype=torch.bool).index_fill_(0, slots, True)


def _counted_before(mask: torch.Tensor) -> torch.Tensor:
    """Return how many slots of the mask come before each slot, int64."""
    return mask.long().cumsum(0) - mask.long()
