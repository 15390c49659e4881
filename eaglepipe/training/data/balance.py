"""Shares of about equal cost: the costliest document first, to the share of least cost."""

import math
from collections.abc import Sequence
from heapq import heappop, heappush


def share_out(
    costs: Sequence[float], sizes: Sequence[int], *, capacity: int, multiple_of: int = 1
) -> list[tuple[int, ...]]:
    """Divide documents into few shares of about equal cost within `capacity`, in a multiple of so many; some are empty.

    Returns: the positions of the documents in each share.
    """
    assert max(sizes, default=0) <= capacity, f"a document of {max(sizes)} tokens in shares of {capacity}"
    num_shares = multiple_of * math.ceil(sum(sizes) / (capacity * multiple_of))
    while (shares := spread(costs, num_shares, sizes=sizes, capacity=capacity)) is None:
        num_shares += multiple_of
    return shares


def spread(
    costs: Sequence[float], num_shares: int, *, sizes: Sequence[int] | None = None, capacity: int = 0
) -> list[tuple[int, ...]] | None:
    """Assign documents by falling cost, each to the share of least cost that has room; None if one fits nowhere.

    Ties go to the document and to the share of the lower number. Without `sizes` there is always room.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    lightest = [(0.0, share, 0) for share in range(num_shares)]
    for document in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
        size = 0 if sizes is None else sizes[document]
        full = []
        while lightest and lightest[0][2] + size > capacity:
            full.append(heappop(lightest))
        if not lightest:
            return None
        cost, share, used = heappop(lightest)
        shares[share].append(document)
        for entry in (*full, (cost + costs[document], share, used + size)):
            heappush(lightest, entry)
    return [tuple(share) for share in shares]
