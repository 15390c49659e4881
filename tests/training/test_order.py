import numpy as np

from eaglepipe.training.order import choose_heldout, epoch_order, heldout_hash, split_samples

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
