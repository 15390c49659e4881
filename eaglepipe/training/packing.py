"""From an order of samples to steps, rows and micro-batches, with lengths as the only input.

The samples of a step depend on the order and the token budget alone; ranks and micro-batches only cut them up.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from eaglepipe.training.order import epoch_order
from eaglepipe.training.types import Cut, Position, Row, StepPlan


def step_ends(lengths: NDArray[np.integer], batch_tokens: int) -> NDArray[np.int64]:
    """Where each step ends in an order of samples: as many as fit the budget, at least one."""
    totals = np.cumsum(lengths, dtype=np.int64)
    ends: list[int] = []
    start, before = 0, 0
    while start < len(totals):
        start = max(int(np.searchsorted(totals, before + batch_tokens, side="right")), start + 1)
        before = int(totals[start - 1])
        ends.append(start)
    return np.array(ends, dtype=np.int64)


def pack_rows(lengths: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Best-fit decreasing: the positions of the documents in each row, longest row first; ties keep the given order."""
    rows: list[list[int]] = []
    spaces: list[tuple[int, int]] = []  # (space left, row), ascending
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        assert 0 < length <= capacity, f"a document of {length} tokens in rows of {capacity}"
        fit = bisect_left(spaces, (length, -1))
        if fit < len(spaces):
            space, row = spaces.pop(fit)
            rows[row].append(document)
        else:
            space, row = capacity, len(rows)
            rows.append([document])
        insort(spaces, (space - length, row))
    used = [capacity - space for space, _ in sorted(spaces, key=lambda entry: entry[1])]
    return [tuple(rows[row]) for row in sorted(range(len(rows)), key=lambda r: (-used[r], r))]


def group_rows(row_lengths: Sequence[int], micro_batch_tokens: int) -> list[slice]:
    """Consecutive rows that share a forward: B rows of the longest one's length fit the budget, or it is one row."""
    groups: list[slice] = []
    start, longest = 0, 0
    for row, length in enumerate(row_lengths):
        longest = max(longest, length)
        if row > start and (row - start + 1) * longest > micro_batch_tokens:
            groups.append(slice(start, row))
            start, longest = row, length
    return [*groups, slice(start, len(row_lengths))] if row_lengths else []


def micro_batches(samples: NDArray[np.int64], num_tokens: NDArray[np.integer], cut: Cut) -> tuple[tuple[Row, ...], ...]:
    """This rank's micro-batches of a set of samples; rows go round the ranks, longest first."""
    lengths = [int(n) for n in num_tokens[samples]]
    packed = pack_rows(lengths, cut.pack_length)[cut.rank :: cut.world_size]
    row_lengths = [sum(lengths[document] for document in row) for row in packed]
    rows = [tuple(int(samples[document]) for document in row) for row in packed]
    return tuple(tuple(rows[group]) for group in group_rows(row_lengths, cut.micro_batch_tokens))


def count_steps(
    train: NDArray[np.int64],
    num_tokens: NDArray[np.integer],
    *,
    identity: str,
    seed: int,
    epochs: int,
    batch_tokens: int,
    weights: NDArray[np.float64] | None = None,
) -> int:
    """Optimizer steps of a whole run, from lengths and weights alone."""
    orders = (epoch_order(train, identity=identity, seed=seed, epoch=epoch, weights=weights) for epoch in range(epochs))
    return sum(len(step_ends(num_tokens[order], batch_tokens)) for order in orders)


def plan_steps(
    train: NDArray[np.int64],
    num_tokens: NDArray[np.integer],
    *,
    identity: str,
    seed: int,
    epochs: int,
    batch_tokens: int,
    cut: Cut,
    start: Position,
    weights: NDArray[np.float64] | None = None,
) -> Iterator[StepPlan]:
    """The steps of a run from a position on."""
    for epoch in range(start.epoch, epochs):
        order = epoch_order(train, identity=identity, seed=seed, epoch=epoch, weights=weights)
        done = start.samples_done if epoch == start.epoch else 0
        for end in done + step_ends(num_tokens[order[done:]], batch_tokens):
            samples = order[done:end]
            after = Position(epoch=epoch, samples_done=int(end))
            yield StepPlan(samples=samples, micro_batches=micro_batches(samples, num_tokens, cut), after=after)
            done = int(end)


def plan_evaluation(
    heldout: NDArray[np.int64], num_tokens: NDArray[np.integer], *, batch_tokens: int, cut: Cut
) -> Iterator[StepPlan]:
    """One pass over the held-out samples, similar lengths together."""
    order = heldout[np.argsort(num_tokens[heldout], kind="stable")[::-1]]
    done = 0
    for end in step_ends(num_tokens[order], batch_tokens):
        samples = order[done:end]
        after = Position(samples_done=int(end))
        yield StepPlan(samples=samples, micro_batches=micro_batches(samples, num_tokens, cut), after=after)
        done = int(end)
