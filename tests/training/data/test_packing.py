import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.recipe.family_settings import Eagle3TrainConfig
from eaglepipe.training.data.batch import DataPosition, PackingLimits, StepPlan
from eaglepipe.training.data.order import SampleOrder, step_ends
from eaglepipe.training.data.packing import micro_batches, plan_steps
from eaglepipe.training.objectives.interface import make_objective
from tests.training.tiny_source import made_index

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 100))
def test_steps_take_all_that_fits_and_at_least_one(lengths: list[int], budget: int) -> None:
    ends = list(step_ends(np.array(lengths), budget))
    assert ends[-1] == len(lengths)
    for start, end in zip([0, *ends], ends, strict=False):
        assert end == start + 1 or sum(lengths[start:end]) <= budget
        assert end == len(lengths) or sum(lengths[start : end + 1]) > budget


CUTS = st.tuples(st.integers(20, 64), st.integers(20, 64), st.integers(1, 5)).map(
    lambda cut: {"pack_length": min(cut[:2]), "micro_batch_tokens": max(cut[:2]), "world_size": cut[2]}
)


@given(LENGTHS, CUTS, st.integers(0, 9))
def test_any_cut_holds_every_sample_once_within_rows_and_micro_batches(
    lengths: list[int], cut: dict[str, int], seed: int
) -> None:
    samples, num_tokens = np.arange(len(lengths)), np.array(lengths)
    costs = np.random.default_rng(seed).uniform(1, 50, len(lengths))
    ranks = [
        micro_batches(samples, num_tokens, costs, PackingLimits(**cut, rank=rank)) for rank in range(cut["world_size"])
    ]
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(sample for batch in batches for row in batch for sample in row) == samples.tolist()
    for batch in batches:
        rows = [sum(lengths[sample] for sample in row) for row in batch]
        assert rows and min(rows) > 0
        assert max(rows) <= cut["pack_length"]
        assert sum(rows) <= cut["micro_batch_tokens"]
        assert rows == sorted(rows, reverse=True)


@given(LENGTHS, st.integers(20, 64))
def test_rows_as_long_as_a_micro_batch_are_its_only_ones_so_that_nothing_is_padded(
    lengths: list[int], size: int
) -> None:
    costs = np.array(lengths, np.float64)
    limits = PackingLimits(pack_length=size, micro_batch_tokens=size)
    assert all(len(batch) == 1 for batch in micro_batches(np.arange(len(lengths)), np.array(lengths), costs, limits))


def test_ranks_and_micro_batches_cost_the_same_where_documents_do_not() -> None:
    num_tokens = np.clip(np.random.default_rng(0).lognormal(5.2, 0.8, 300), 16, 1024).astype(int)
    supervised = (num_tokens * np.random.default_rng(1).uniform(0.1, 0.9, 300)).astype(int)
    priced = make_objective(Eagle3TrainConfig(ttt_steps=7))
    costs = priced.costs(made_index(num_tokens, supervised), num_layers=1, training=True)
    cuts = [PackingLimits(pack_length=4096, micro_batch_tokens=4096, world_size=4, rank=rank) for rank in range(4)]
    ranks = [micro_batches(np.arange(300), num_tokens, costs, cut) for cut in cuts]
    of_batches = np.array([[sum(costs[s] for row in batch for s in row) for batch in rank] for rank in ranks])
    assert of_batches.max() / of_batches.min() < 1.05
    assert of_batches.sum(axis=1).max() / of_batches.sum(axis=1).min() < 1.02


BEGINNING = DataPosition()


def plans(rank: int = 0, world_size: int = 1, start: DataPosition = BEGINNING, **cut: int) -> list[StepPlan]:
    num_tokens = np.random.default_rng(0).integers(1, 17, size=50)
    sizes = {"pack_length": 20, "micro_batch_tokens": 40, **cut}
    order = SampleOrder(
        samples=np.arange(50), num_tokens=num_tokens, identity="cache", seed=3, epochs=2, batch_tokens=70
    )
    limits = PackingLimits(**sizes, world_size=world_size, rank=rank)
    return list(plan_steps(order, num_tokens.astype(np.float64), limits=limits, start=start))


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_each_step_without_loss_or_double(world_size: int) -> None:
    alone = plans()
    together = zip(*(plans(rank, world_size) for rank in range(world_size)), strict=True)
    for single, parts in zip(alone, together, strict=True):
        found = [sample for part in parts for batch in part.micro_batches for row in batch for sample in row]
        assert sorted(found) == sorted(single.samples)
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
    sizes = {"epochs": epochs, "batch_tokens": budget}
    order = SampleOrder(samples=samples, num_tokens=num_tokens, identity="cache", seed=0, **sizes)
    limits = PackingLimits(pack_length=20, micro_batch_tokens=20)
    planned = list(plan_steps(order, num_tokens * 1.0, limits=limits, start=BEGINNING))
    assert order.count_steps() == len(planned)


def test_every_row_of_a_rank_lists_cache_numbers_not_positions() -> None:
    samples = np.array([10, 30, 20])
    num_tokens = np.zeros(31, np.int64)
    num_tokens[[10, 20, 30]] = [4, 5, 6]
    limits = PackingLimits(pack_length=10, micro_batch_tokens=10)
    assert micro_batches(samples, num_tokens, num_tokens * 1.0, limits) == (((20, 10),), ((30,),))
