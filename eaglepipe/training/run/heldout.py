"""Evaluation on held-out samples: loss, accuracy by depth and simulated acceptance length."""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.recipe.training import TrainConfig
from eaglepipe.training.data.batch import EncodedBatch, PackingLimits, StepPlan, TrainingSource
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import plan_evaluation
from eaglepipe.training.objectives.interface import Objective
from eaglepipe.training.run.learner import Counters, Learner
from eaglepipe.training.run.metrics import acceptance_length
from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.state import Evaluation


def evaluate(
    learner: Learner,
    source: TrainingSource,
    samples: NDArray[np.int64],
    *,
    config: TrainConfig,
    limits: PackingLimits,
    world: World,
    step: int,
) -> Evaluation:
    """Measure the draft on `samples`, spread over the ranks; every rank gets the same result."""
    objective, counters = learner.evaluation, Counters.zeros(len(learner.evaluation.loss_weights), world.device)
    costs, num_tokens = learner.costs(source.index, training=False), source.index.num_tokens
    plans = plan_evaluation(samples, num_tokens, costs, batch_tokens=config.batch_tokens, limits=limits)
    with learner.gathered():
        for batch in planned_batches(objective, source, plans, config=config, world=world):
            counters = counters + learner.measure(batch)
    total = Counters.of(world.sum(counters.stacked()))
    return summarize(total, step=step, num_samples=len(samples), objective=objective)


def planned_batches(
    objective: Objective, source: TrainingSource, plans: Iterable[StepPlan], *, config: TrainConfig, world: World
) -> Iterator[EncodedBatch]:
    """Yield the batches of `plans` as an evaluation reads them: nothing of them is random."""
    with Loader(
        source,
        plans,
        draw=partial(objective.draw, training=False),
        columns=objective.columns,
        device=world.device,
        prefetch_batches=config.prefetch_batches,
    ) as loader:
        for _, batches in loader:
            yield from batches


def summarize(counters: Counters, *, step: int, num_samples: int, objective: Objective) -> Evaluation:
    """Divide counts that were summed over all batches; nothing is averaged over batches."""
    weights = torch.tensor(objective.loss_weights, dtype=torch.float64, device=counters.counts.device)
    acceptance = _ratios(counters.hits, counters.valid)
    before = (1.0, *acceptance[:-1])
    conditional = tuple(rate / of if of > 0 else 0.0 for rate, of in zip(acceptance, before, strict=True))
    return Evaluation(
        step=step,
        samples=num_samples,
        loss=float((weights * counters.loss_sums / objective.normalizers(counters.counts)).sum()),
        accuracy_by_depth=_ratios(counters.correct, counters.counts),
        acceptance_by_depth=acceptance,
        conditional_acceptance_by_depth=conditional,
        simulated_acceptance_length=acceptance_length(counters.hits.tolist(), counters.valid.tolist()),
    )


def _ratios(numerators: torch.Tensor, denominators: torch.Tensor) -> tuple[float, ...]:
    return tuple((numerators / denominators.clamp(min=1)).tolist())
