from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eaglepipe.training.data.balance import share_out, spread

COSTS = st.lists(st.integers(1, 50), max_size=40)


def sums(values: list[int], shares: list[tuple[int, ...]]) -> list[int]:
    return [sum(values[document] for document in share) for share in shares]


@given(COSTS, st.integers(1, 9))
def test_every_document_is_in_one_share_and_shares_differ_by_one_document_at_most(costs: list[int], num: int) -> None:
    shares = spread(costs, num)
    assert shares is not None and len(shares) == num
    assert sorted(document for share in shares for document in share) == list(range(len(costs)))
    totals = sums(costs, shares)
    assert max(totals) - min(totals) <= max(costs, default=0)


def test_largest_first_to_the_lightest_by_hand() -> None:
    assert spread([5, 7, 3, 6, 4], 2) == [(1, 4, 2), (3, 0)]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 20)), max_size=40), st.integers(20, 60), st.integers(1, 4))
def test_shares_keep_to_their_capacity_and_come_in_multiples(
    documents: list[tuple[int, int]], capacity: int, multiple_of: int
) -> None:
    costs, sizes = [cost for cost, _ in documents], [size for _, size in documents]
    shares = share_out(costs, sizes, capacity=capacity, multiple_of=multiple_of)
    assert sorted(document for share in shares for document in share) == list(range(len(costs)))
    assert len(shares) % multiple_of == 0
    assert max(sums(sizes, shares), default=0) <= capacity


def test_share_without_room_is_passed_over_though_it_costs_least() -> None:
    assert spread([9, 8, 1, 1], 2, sizes=[1, 3, 2, 1], capacity=4) == [(0, 2), (1, 3)]
    assert spread([1, 1, 1], 2, sizes=[3, 3, 3], capacity=4) is None


@pytest.mark.parametrize("num_documents", [6, 7])
def test_largest_share_is_within_a_third_of_the_best_split_there_is(num_documents: int) -> None:
    costs = np.random.default_rng(num_documents).integers(1, 30, num_documents).tolist()
    best = min(
        max(sum(c for c, s in zip(costs, chosen, strict=True) if s == share) for share in range(3))
        for chosen in product(range(3), repeat=num_documents)
    )
    shares = spread(costs, 3)
    assert shares is not None and max(sums(costs, shares)) <= best * 4 / 3
