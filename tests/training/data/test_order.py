from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.training.data.order import choose_heldout, epoch_order, heldout_hash, split_samples

IDS = [f"source:{i}" for i in range(1000)]


def test_split_is_a_partition_close_to_the_fraction() -> None:
    split = split_samples(IDS, 0.1)
    assert sorted([*split.train, *split.heldout]) == list(range(1000))
    assert 70 < len(split.heldout) < 130
    assert all(heldout_hash(IDS[i]) < 0.1 for i in split.heldout)


def test_a_sample_stays_on_its_side_whatever_surrounds_it() -> None:
    whole = {IDS[i] for i in split_samples(IDS, 0.1).heldout}
    part = IDS[500:200:-1]
    assert {part[i] for i in split_samples(part, 0.1).heldout} == whole & set(part)


def test_the_rows_of_one_conversation_stay_together() -> None:
    rows = [name + suffix for name in IDS for suffix in ("", "#2", "#13")]
    heldout = {rows[i] for i in split_samples(rows, 0.1).heldout}
    assert heldout == {row for row in rows if heldout_hash(row.partition("#")[0]) < 0.1}
    assert heldout_hash("source:a#1") != heldout_hash("source:a") != heldout_hash("source:a#x2")


def test_a_tiny_fraction_still_holds_out_the_lowest_hash() -> None:
    split = split_samples(IDS[:5], 1e-9)
    assert list(split.heldout) == [np.argmin([heldout_hash(i) for i in IDS[:5]])]


def test_a_huge_fraction_still_leaves_one_to_train() -> None:
    assert len(split_samples(IDS[:5], 0.999).train) >= 1


def test_zero_fraction_or_one_sample_holds_out_nothing() -> None:
    assert len(split_samples(IDS, 0.0).heldout) == 0
    assert len(split_samples(IDS[:1], 0.9).heldout) == 0


def test_evaluated_samples_are_a_fixed_part_of_those_held_out() -> None:
    split = split_samples(IDS, 0.2)
    few, more = choose_heldout(IDS, split, 10), choose_heldout(IDS, split, 20)
    assert len(few) == 10 and set(few) < set(more) < set(split.heldout)
    assert list(choose_heldout(IDS, split, None)) == list(split.heldout)


def test_order_is_a_permutation_that_depends_on_cache_seed_and_epoch_only() -> None:
    samples = np.arange(0, 300, 3)
    first = epoch_order(samples, identity="a", seed=0, epoch=0)
    assert sorted(first) == list(samples)
    assert list(first) == list(epoch_order(samples, identity="a", seed=0, epoch=0))
    for other in (
        epoch_order(samples, identity="b", seed=0, epoch=0),
        epoch_order(samples, identity="a", seed=1, epoch=0),
        epoch_order(samples, identity="a", seed=0, epoch=1),
    ):
        assert list(other) != list(first)


def test_weight_one_everywhere_is_the_unweighted_order() -> None:
    samples, key = np.arange(0, 300, 3), {"identity": "a", "seed": 0, "epoch": 2}
    assert list(epoch_order(samples, **key, weights=np.ones(300))) == list(epoch_order(samples, **key))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 5.0)), min_size=1, max_size=4), st.integers(1, 12))
def test_a_weight_is_the_share_of_samples_in_every_epoch_and_of_epochs_for_every_sample(
    caches: list[tuple[int, float]], epochs: int
) -> None:
    weights = np.concatenate([np.full(count, weight) for count, weight in caches])
    samples = np.arange(len(weights))
    drawn: Counter[int] = Counter()
    for epoch in range(epochs):
        order = epoch_order(samples, identity="a", seed=0, epoch=epoch, weights=weights)
        assert list(order) == list(epoch_order(samples, identity="a", seed=0, epoch=epoch, weights=weights))
        once = Counter(order.tolist())
        for weight in set(weights):
            of_weight = samples[weights == weight]
            assert sum(once[i] for i in of_weight) == max(1, round(weight * len(of_weight)))
            counts = [once[i] for i in of_weight]
            assert max(counts) - min(counts) <= 1
        drawn.update(once)
    for weight in set(weights):
        counts = [drawn[i] for i in samples[weights == weight]]
        assert max(counts) - min(counts) <= 1


def test_weighted_caches_are_interleaved_and_not_one_after_the_other() -> None:
    weights = np.repeat([2.0, 0.5], 200)
    order = epoch_order(np.arange(400), identity="a", seed=0, epoch=0, weights=weights)
    thirds = [np.mean(part < 200) for part in np.array_split(order, 3)]
    assert len(order) == 500 and all(0.7 < share < 0.9 for share in thirds)
