"""Samples of two caches, found by their ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Samples that two caches share, as numbers in the first cache's order, and how many only one has."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    only_a: int
    only_b: int
    examples: tuple[str, ...]  # ids that only one has

    @property
    def count(self) -> int:
        return len(self.a)

    def pairs(self) -> Iterator[tuple[int, int]]:
        return zip(self.a.tolist(), self.b.tolist(), strict=True)


def match_samples(a: Sequence[str], b: Sequence[str]) -> Matches:
    """Match the ids of two caches, each of which has an id once."""
    number = {name: index for index, name in enumerate(b)}
    pairs = [(index, number.pop(name)) for index, name in enumerate(a) if name in number]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    taken = np.zeros(len(a), np.bool_)
    taken[first] = True
    missing = [f"{a[int(index)]} (only in A)" for index in np.flatnonzero(~taken)[:_EXAMPLES]]
    extra = [f"{name} (only in B)" for name, _ in zip(number, range(_EXAMPLES), strict=False)]
    return Matches(a=first, b=second, only_a=int((~taken).sum()), only_b=len(number), examples=(*missing, *extra))
