"""From an order of samples to steps, micro-batches and rows, from metadata alone.

The samples of a step depend on the order and the token budget alone; ranks and micro-batches only cut them up.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eaglepipe.training.data.balance import share_out, spread
from eaglepipe.training.data.batch import DataPosition, PackingLimits, Row, StepPlan
from eaglepipe.training.data.order import epoch_order


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


def micro_batches(
    samples: NDArray[np.int64], num_tokens: NDArray[np.integer], costs: NDArray[np.float64], limits: PackingLimits
) -> tuple[tuple[Row, ...], ...]:
    """This rank's micro-batches of a set of samples, the costliest first.

    All micro-batches of all ranks cost about the same, and so do the ranks. Each holds up to `micro_batch_tokens`
    real tokens, in rows of nearly equal length; one row, and no padding, where `pack_length` lets it.
    """
    lengths = num_tokens[samples].tolist()
    batches = share_out(
        costs[samples].tolist(), lengths, capacity=limits.micro_batch_tokens, multiple_of=limits.world_size
    )
    batch_costs = [float(costs[samples[list(batch)]].sum()) for batch in batches]
    ranks = spread(batch_costs, limits.world_size)
    assert ranks is not None
    own = [[int(samples[document]) for document in batches[batch]] for batch in ranks[limits.rank] if batches[batch]]
    return tuple(_rows(batch, num_tokens, limits.pack_length) for batch in own)


def _rows(samples: list[int], num_tokens: NDArray[np.integer], pack_length: int) -> tuple[Row, ...]:
    """Rows of one micro-batch, the longest first."""
    lengths = num_tokens[samples].tolist()
    rows = [row for row in share_out(lengths, lengths, capacity=pack_length) if row]
    rows.sort(key=lambda row: -sum(lengths[document] for document in row))
    return tuple(tuple(samples[document] for document in row) for row in rows)


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
    costs: NDArray[np.float64],
    *,
    identity: str,
    seed: int,
    epochs: int,
    batch_tokens: int,
    limits: PackingLimits,
    start: DataPosition,
    weights: NDArray[np.float64] | None = None,
) -> Iterator[StepPlan]:
    """The steps of a run from a position on; `num_tokens` and `costs` are those of every sample of the source."""
    for epoch in range(start.epoch, epochs):
        order = epoch_order(train, identity=identity, seed=seed, epoch=epoch, weights=weights)
        done = start.samples_done if epoch == start.epoch else 0
        for end in done + step_ends(num_tokens[order[done:]], batch_tokens):
            samples = order[done:end]
            after = DataPosition(epoch=epoch, samples_done=int(end))
            yield StepPlan(
                samples=samples, micro_batches=micro_batches(samples, num_tokens, costs, limits), after=after
            )
            done = int(end)


def plan_evaluation(
    heldout: NDArray[np.int64],
    num_tokens: NDArray[np.integer],
    costs: NDArray[np.float64],
    *,
    batch_tokens: int,
    limits: PackingLimits,
) -> Iterator[StepPlan]:
    """One pass over the held-out samples."""
    done = 0
    for end in step_ends(num_tokens[heldout], batch_tokens):
        samples = heldout[done:end]
        after = DataPosition(samples_done=int(end))
        yield StepPlan(samples=samples, micro_batches=micro_batches(samples, num_tokens, costs, limits), after=after)
        done = int(end)
