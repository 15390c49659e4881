"""Sampled supervision against draws in fractions, and its expectation against the whole distribution."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.cache.supervision.sampled import SampledRule, draw_entries
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets

UNIT = 2**30


def distribution(seed: int, size: int, sharpness: float) -> torch.Tensor:
    return torch.softmax(sharpness * torch.randn(1, size, generator=torch.Generator().manual_seed(seed)), -1)


def random_keys(number: int) -> torch.Tensor:
    return torch.randint(2**53, (number,), generator=torch.Generator().manual_seed(1))


def oracle(probs: list[float], key: int, num_entries: int) -> list[tuple[int, Fraction]]:
    """Entries (id, probability): those above their share, then the tokens at even steps of the others' mass."""
    mass = {index: round(p * UNIT) for index, p in enumerate(probs)}
    kept = []
    left = min(num_entries, len(probs))
    while left > 1:
        best = max(mass, key=lambda index: (mass[index], -index))
        if kept and mass[best] * left <= sum(mass.values()):
            break
        kept.append((best, Fraction(probs[best])))
        del mass[best]
        left -= 1
    rest = sum(mass.values())
    drawn = []
    for number in range(left if rest else 0):
        place = int((number + Fraction(key, 2**53)) * rest / left)
        for index in sorted(mass):
            place -= mass[index]
            if place < 0:
                drawn.append((index, Fraction(rest, left * UNIT)))
                break
    return [kept[0], *sorted(kept[1:] + drawn)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([2, 9, 120]),
    sharpness=st.sampled_from([0.0, 1.0, 4.0, 30.0]),
    num_entries=st.sampled_from([2, 8, 40]),
)
def test_entries_are_the_oracles(seed: int, size: int, sharpness: float, num_entries: int) -> None:
    probs, keys = distribution(seed, size, sharpness), random_keys(5)
    found = draw_entries(probs.expand(5, -1).contiguous(), keys, num_entries)
    for key, ids, stored in zip(
        keys.tolist(),
        found.ids.split(found.counts.tolist()),
        found.probs.split(found.counts.tolist()),
        strict=True,
    ):
        expected = [(index, p) for index, p in oracle(probs[0].tolist(), key, num_entries)]
        first, others = expected[0], [(index, p) for index, p in expected[1:] if float(np.float16(float(p))) > 0]
        assert ids.tolist() == [index for index, _ in [first, *others]]
        assert stored.tolist() == pytest.approx([float(p) for _, p in [first, *others]], rel=6e-4, abs=6e-8)
        assert ids[0] == probs[0].argmax() and stored.float().sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("sharpness", "num_entries"), [(2.0, 8), (0.1, 8), (4.0, 3), (1.0, 2)])
def test_mean_over_draws_is_the_distribution_and_so_is_that_of_the_gradient(sharpness: float, num_entries: int) -> None:
    number, size = 20_000, 40
    probs = distribution(3, size, sharpness)
    found = draw_entries(probs.expand(number, -1).contiguous(), random_keys(number), num_entries)
    ids, stored = found.ids.long(), found.probs.double()
    mean = torch.zeros(size, dtype=torch.float64).index_add_(0, ids, stored) / number
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), found.counts.cumsum(0)])
    step = torch.cat([row[1:] for row in stored.split(found.counts.tolist())]).min()  # which each drawn one stands for
    allowed = 5 * (probs[0] * step / number).sqrt() + 10 * step / number + 2e-3 * probs[0]
    assert ((mean - probs[0]).abs() <= allowed).all()

    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(4))
    targets = SparseTargets(probs=stored.float(), ids=ids, row_offsets=offsets, tail=found.tail, top_first=True)
    losses = SparseRows.of(targets).losses(logits.repeat(number, 1), torch.arange(number), torch.float32)
    exact = -(probs * logits.log_softmax(-1)).sum()
    assert losses.losses.mean() == pytest.approx(float(exact), abs=5 * float(losses.losses.std()) / number**0.5 + 2e-3)
    gradient = losses.gradient.double().mean(0)
    assert ((gradient - (logits.softmax(-1) - probs)[0]).abs() <= allowed + 1e-3 * logits.softmax(-1)[0]).all()


def test_likeliest_token_is_told_where_a_drawn_one_weighs_more() -> None:
    probs = torch.full((1, 50), 0.979 / 49)
    probs[0, 17] = 0.021
    found = draw_entries(probs, torch.tensor([5]), 4)
    assert found.ids[0] == 17 and found.probs[0] < found.probs[1:].min()
    targets = SparseTargets(
        probs=found.probs,
        ids=found.ids.long(),
        row_offsets=torch.tensor([0, len(found.ids)]),
        tail=found.tail,
        top_first=True,
    )
    assert SparseRows.of(targets).top_tokens().tolist() == [17]


def test_equal_tokens_are_told_apart_as_argmax_does_and_a_certain_one_is_alone() -> None:
    tied = torch.tensor([[0.1, 0.4, 0.1, 0.4]])
    assert draw_entries(tied, torch.tensor([0]), 3).ids[0] == 1
    certain = draw_entries(torch.eye(5), random_keys(5), 4)
    assert certain.counts.tolist() == [1] * 5 and certain.ids.tolist() == list(range(5))
    assert certain.probs.eq(1).all()


def test_random_numbers_belong_to_seed_sample_and_place() -> None:
    ids, mask = np.zeros(400, np.int32), np.ones(400, np.bool_)
    rule = SampledRule(draws=8)
    whole = rule.hints("a:1", ids, mask)
    some = mask.copy()
    some[::3] = False
    assert np.array_equal(rule.hints("a:1", ids, some), whole[some])
    others = [rule.hints("a:2", ids, mask), SampledRule(draws=8, draw_seed=1).hints("a:1", ids, mask)]
    assert len({int(key) for keys in (whole, *others) for key in keys}) == 3 * len(whole)
    assert 0 <= whole.min() <= whole.max() < 2**53
    assert (whole / 2**53).mean() == pytest.approx(0.5, abs=0.1)


def test_rows_that_are_not_finite_stay_so() -> None:
    probs = torch.full((2, 6), 1 / 6)
    probs[1, 2] = torch.nan
    found = draw_entries(probs, random_keys(2), 3)
    first = found.probs[torch.tensor([0, int(found.counts[0])])]
    assert torch.isfinite(first).tolist() == [True, False]
