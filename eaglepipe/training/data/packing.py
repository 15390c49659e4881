"""Plans of steps, micro-batches and rows for an order of samples, from metadata alone.

The samples of a step depend on the order and the token budget alone; ranks and micro-batches only divide them.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from eaglepipe.training.data.balance import share_out, spread
from eaglepipe.training.data.batch import DataPosition, PackingLimits, Row, StepPlan
from eaglepipe.training.data.order import SampleOrder, step_ends


def micro_batches(
    samples: NDArray[np.int64], num_tokens: NDArray[np.integer], costs: NDArray[np.float64], limits: PackingLimits
) -> tuple[tuple[Row, ...], ...]:
    """Pack a set of samples into this rank's micro-batches, the costliest first.

    All micro-batches of all ranks cost about the same, and so do the ranks. Each holds up to `micro_batch_tokens`
    real tokens, in rows of nearly equal length; one row, and no padding, if `pack_length` allows it.
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
    """Pack the samples of one micro-batch into rows, the longest first."""
    lengths = num_tokens[samples].tolist()
    rows = [row for row in share_out(lengths, lengths, capacity=pack_length) if row]
    rows.sort(key=lambda row: -sum(lengths[document] for document in row))
    return tuple(tuple(samples[document] for document in row) for row in rows)


def plan_steps(
    order: SampleOrder, costs: NDArray[np.float64], *, limits: PackingLimits, start: DataPosition
) -> Iterator[StepPlan]:
    """Plan the steps of a run from a position on; `costs` are those of every sample of the source."""
    for epoch in range(start.epoch, order.epochs):
        samples = order.epoch(epoch)
        done = start.samples_done if epoch == start.epoch else 0
        bounds = [done, *(done + step_ends(order.num_tokens[samples[done:]], order.batch_tokens)).tolist()]
        for begin, end in pairwise(bounds):
            yield StepPlan(
                samples=samples[begin:end],
                micro_batches=micro_batches(samples[begin:end], order.num_tokens, costs, limits),
                after=DataPosition(epoch=epoch, samples_done=end),
                share=limits.share,
            )


def plan_evaluation(
    heldout: NDArray[np.int64],
    num_tokens: NDArray[np.integer],
    costs: NDArray[np.float64],
    *,
    batch_tokens: int,
    limits: PackingLimits,
) -> Iterator[StepPlan]:
    """Plan one pass over the held-out samples."""
    for begin, end in pairwise([0, *step_ends(num_tokens[heldout], batch_tokens).tolist()]):
        samples = heldout[begin:end]
        batches = micro_batches(samples, num_tokens, costs, limits)
        after = DataPosition(samples_done=end)
        yield StepPlan(samples=samples, micro_batches=batches, after=after, share=limits.share)
