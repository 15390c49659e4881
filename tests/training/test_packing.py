from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.training.packing import count_steps, group_rows, micro_batches, pack_rows, plan_steps, step_ends
from eaglepipe.training.types import Cut, Position, StepPlan

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 100))
def test_steps_take_all_that_fits_and_at_least_one(lengths: list[int], budget: int) -> None:
    ends = list(step_ends(np.array(lengths), budget))
    assert ends[-1] == len(lengths)
    for start, end in zip([0, *ends], ends, strict=False):
        assert end == start + 1 or sum(lengths[start:end]) <= budget
        assert end == len(lengths) or sum(lengths[start : end + 1]) > budget


@given(LENGTHS, st.integers(20, 64))
def test_rows_hold_every_document_once_and_never_overflow(lengths: list[int], capacity: int) -> None:
    rows = pack_rows(lengths, capacity)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    sums = [sum(lengths[document] for document in row) for row in rows]
    assert max(sums) <= capacity
    assert sums == sorted(sums, reverse=True)
    assert all(a + b > capacity for a, b in pairwise(sums))  # no two neighbours fit one row


def test_best_fit_decreasing_by_hand() -> None:
    assert pack_rows([5, 7, 3, 6, 4], 10) == [(1, 2), (3, 4), (0,)]


@given(st.lists(st.integers(1, 20), max_size=40).map(lambda rows: sorted(rows, reverse=True)), st.integers(1, 80))
def test_micro_batches_stay_within_their_padded_budget(row_lengths: list[int], budget: int) -> None:
    groups = group_rows(row_lengths, budget)
    assert [row for group in groups for row in row_lengths[group]] == row_lengths
    for group in groups:
        rows = row_lengths[group]
        assert len(rows) == 1 or len(rows) * max(rows) <= budget


BEGINNING = Position()


def plans(rank: int = 0, world_size: int = 1, start: Position = BEGINNING, **cut: int) -> list[StepPlan]:
    num_tokens = np.random.default_rng(0).integers(1, 17, size=50)
    sizes = {"pack_length": 20, "micro_batch_tokens": 40, **cut}
    plan = plan_steps(
        np.arange(50),
        num_tokens,
        identity="cache",
        seed=3,
        epochs=2,
        batch_tokens=70,
        cut=Cut(**sizes, world_size=world_size, rank=rank),
        start=start,
    )
    return list(plan)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_each_step_without_loss_or_double(world_size: int) -> None:
    alone = plans()
    together = zip(*(plans(rank, world_size) for rank in range(world_size)), strict=True)
    for single, parts in zip(alone, together, strict=True):
        rows = [row for part in parts for batch in part.micro_batches for row in batch]
        assert sorted(rows) == sorted(row for batch in single.micro_batches for row in batch)
        assert all(list(part.samples) == list(single.samples) for part in parts)


def test_micro_batch_and_row_length_do_not_change_which_samples_a_step_has() -> None:
    expected = [list(plan.samples) for plan in plans()]
    assert expected == [list(plan.samples) for plan in plans(pack_length=16, micro_batch_tokens=16)]


def test_plan_continues_from_any_position_as_if_never_left() -> None:
    whole = plans()
    for done, plan in enumerate(whole):
        rest = plans(start=plan.after)
        assert [list(p.samples) for p in rest] == [list(p.samples) for p in whole[done + 1 :]]


@settings(max_examples=20)
@given(LENGTHS, st.integers(1, 3), st.integers(1, 60))
def test_steps_are_counted_without_planning_them(lengths: list[int], epochs: int, budget: int) -> None:
    num_tokens, samples = np.array(lengths), np.arange(len(lengths))
    shared = {"identity": "cache", "seed": 0, "epochs": epochs, "batch_tokens": budget}
    cut = Cut(pack_length=20, micro_batch_tokens=20)
    planned = list(plan_steps(samples, num_tokens, **shared, cut=cut, start=BEGINNING))
    assert count_steps(samples, num_tokens, **shared) == len(planned)


def test_every_row_of_a_rank_lists_cache_numbers_not_positions() -> None:
    samples = np.array([10, 30, 20])
    num_tokens = np.zeros(31, np.int64)
    num_tokens[[10, 20, 30]] = [4, 5, 6]
    assert micro_batches(samples, num_tokens, Cut(pack_length=10, micro_batch_tokens=10)) == (((30, 10),), ((20,),))
