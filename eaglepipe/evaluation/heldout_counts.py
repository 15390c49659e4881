"""What a cache alone says of a draft: every held-out position judged as training judges it, in counts by sample.

The simulated acceptance length weighs every position alike. An engine starts a round only where the one before ended,
so that easy stretches, which it crosses in few rounds, weigh less: see `replay` for the figure that it meets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.evaluation.bootstrap import Estimate, Floats, bootstrap
from eaglepipe.evaluation.trained import TrainedRun
from eaglepipe.training.data.batch import Position, StepPlan
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.supervision_rows import usable
from eaglepipe.training.objectives.interface import Objective, make_objective
from eaglepipe.training.run.distributed import World
from eaglepipe.training.run.heldout import summarize
from eaglepipe.training.run.learner import Counters, Learner

_ROWS = ("loss_sums", "counts", "correct", "hits", "valid")


@dataclass(frozen=True, kw_only=True)
class HeldoutCounts:
    """Counters of N held-out samples at K depths, and which source each came from."""

    by_depth: Floats  # [N, 5, K]: loss sums, counts, correct, hits, valid
    outside: Floats  # [N, 3]: supervised slots, those whose target token has no draft id, summed mass outside
    sources: tuple[str, ...]  # [N]


@dataclass(frozen=True, kw_only=True)
class HeldoutFigures:
    """Of all held-out samples, or of those of one source; K depths. Simulated, chain, greedy, teacher-forced."""

    source: str  # "all" for all
    samples: int
    slots: int  # supervised
    loss: float
    acceptance_length: Estimate
    accuracy_by_depth: tuple[Estimate, ...]
    conditional_acceptance_by_depth: tuple[Estimate, ...]
    outside_vocabulary: Estimate  # share of slots whose target token has no draft id: never accepted
    mass_outside: Estimate  # the target's mean probability of such tokens


def count_heldout(run: TrainedRun, world: World) -> HeldoutCounts:
    """Run the draft over the held-out samples, one by one."""
    learner = Learner(run.source, run.draft, run.recipe.train, world)
    rows = [counters.stacked().cpu().numpy() for counters in _each(run, learner, world)]
    index = run.source.index
    return HeldoutCounts(
        by_depth=np.stack(rows),
        outside=np.stack([_outside(run, int(sample)) for sample in run.heldout]),
        sources=tuple(index.sources[index.source_of[sample]] for sample in run.heldout),
    )


def heldout_figures(counts: HeldoutCounts, run: TrainedRun, *, seed: int) -> list[HeldoutFigures]:
    """Of everything first, then by source where there is more than one."""
    objective = make_objective(run.recipe.train.evaluated)
    names = np.array(counts.sources)
    chosen: list[tuple[str, NDArray[np.bool_]]] = [("all", np.ones(len(names), np.bool_))]
    if len(set(counts.sources)) > 1:
        chosen += [(str(name), names == name) for name in dict.fromkeys(counts.sources)]
    return [_figures(name, counts, mask, objective, seed) for name, mask in chosen]


def _figures(
    name: str, counts: HeldoutCounts, mask: NDArray[np.bool_], objective: Objective, seed: int
) -> HeldoutFigures:
    by_depth, outside = counts.by_depth[mask], counts.outside[mask]
    total = Counters.of(torch.from_numpy(by_depth.sum(axis=0)))
    summary = summarize(total, step=0, num_samples=len(by_depth), objective=objective)
    depths = by_depth.shape[-1]
    flat = by_depth.reshape(len(by_depth), -1)
    estimates = bootstrap(flat, partial(_rates, depths=depths), seed=seed)
    share, mass = bootstrap(outside, lambda sums: sums[..., 1:] / np.maximum(sums[..., :1], 1), seed=seed)
    return HeldoutFigures(
        source=name,
        samples=len(by_depth),
        slots=int(outside[:, 0].sum()),
        loss=summary.loss,
        acceptance_length=estimates[0],
        accuracy_by_depth=tuple(estimates[1 : 1 + depths]),
        conditional_acceptance_by_depth=tuple(estimates[1 + depths :]),
        outside_vocabulary=share,
        mass_outside=mass,
    )


def _rates(sums: Floats, *, depths: int) -> Floats:
    """Summed counters [..., 5·K] -> acceptance length, accuracy and conditional acceptance by depth: [..., 1 + 2K]."""
    rows = dict(zip(_ROWS, np.moveaxis(sums.reshape(*sums.shape[:-1], len(_ROWS), depths), -2, 0), strict=True))
    accuracy = rows["correct"] / np.maximum(rows["counts"], 1)
    acceptance = rows["hits"] / np.maximum(rows["valid"], 1)
    before = np.concatenate([np.ones_like(acceptance[..., :1]), acceptance[..., :-1]], axis=-1)
    conditional = np.divide(acceptance, before, out=np.zeros_like(acceptance), where=before > 0)
    return np.concatenate([1 + acceptance.sum(axis=-1, keepdims=True), accuracy, conditional], axis=-1)


def _each(run: TrainedRun, learner: Learner, world: World) -> Iterator[Counters]:
    plans = (
        StepPlan(samples=np.array([sample]), micro_batches=(((int(sample),),),), after=Position())
        for sample in run.heldout
    )
    draw = partial(learner.evaluation.draw, training=False)
    with Loader(
        run.source,
        plans,
        draw=draw,
        reads=learner.evaluation.reads,
        device=world.device,
        prefetch_batches=run.recipe.train.prefetch_batches,
    ) as loader:
        for _, batches in loader:
            for batch in batches:
                yield learner.measure(batch)


def _outside(run: TrainedRun, number: int) -> Floats:
    sample = run.source.read(number)
    slots = usable(sample.supervised)
    missing = slots & ~sample.position_mask
    return np.array([slots.sum(), missing.sum(), (1.0 - sample.draft_mass[slots]).sum()], np.float64)
