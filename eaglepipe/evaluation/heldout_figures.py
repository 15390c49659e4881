"""Figures of a draft from a cache alone: every held-out position is judged as in training, counted by sample.

This simulated acceptance length weighs every position alike. An engine starts a round only at the end of the one
before, so that easy stretches, which it crosses in few rounds, weigh less: see `replay` for the figure that it reaches.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from eaglepipe.cache.types import CachedSample
from eaglepipe.evaluation.figures.bootstrap import Estimate, Floats, bootstrap
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.training.data.batch import DataPosition, StepPlan
from eaglepipe.training.data.supervision_rows import without_first_row
from eaglepipe.training.objectives.interface import Objective
from eaglepipe.training.run.heldout import planned_batches, summarize
from eaglepipe.training.run.learner import Counters, Learner
from eaglepipe.training.run.ranks.distributed import World


@dataclass(frozen=True, kw_only=True)
class HeldoutFigures:
    """Figures at K depths of all held-out samples or those of one source: simulated, chain, greedy, teacher-forced."""

    source: str  # "all" for all
    samples: int
    slots: int  # supervised
    loss: float
    acceptance_length: Estimate
    accuracy_by_depth: tuple[Estimate, ...]
    conditional_acceptance_by_depth: tuple[Estimate, ...]
    outside_vocabulary: Estimate  # share of slots whose target token has no draft id, and so is never accepted
    mass_outside: Estimate  # the target's mean probability of such tokens

    @property
    def num_depths(self) -> int:
        return len(self.accuracy_by_depth)


def heldout_figures(run: FinishedRun, world: World, *, seed: int) -> tuple[HeldoutFigures, ...]:
    """Run the draft over the held-out samples; return figures of all, then of each source if there are several."""
    learner = Learner(run.source, run.draft, run.recipe.train, world)
    plans = (
        StepPlan(samples=np.array([number]), micro_batches=(((int(number),),),), after=DataPosition())
        for number in run.heldout
    )
    batches = planned_batches(learner.evaluation, run.source, plans, config=run.recipe.train, world=world)
    counters = np.stack([learner.measure(batch).stacked().cpu().numpy() for batch in batches])
    outside = np.stack([_outside_vocabulary(run.source.read(number)) for number in run.heldout.tolist()])
    index = run.source.index
    sources = np.array(index.sources)[index.source_of[run.heldout]]
    groups = [("all", np.ones(len(sources), np.bool_))]
    if len(set(sources)) > 1:
        groups += [(str(source), sources == source) for source in dict.fromkeys(sources)]
    return tuple(_figures(name, counters[mask], outside[mask], learner.evaluation, seed) for name, mask in groups)


def _outside_vocabulary(sample: CachedSample) -> Floats:
    """Count supervised slots and those whose target token has no draft id, and sum the mass outside: [3]."""
    slots = without_first_row(sample.supervised)
    missing = slots & ~sample.position_mask
    return np.array([slots.sum(), missing.sum(), (1.0 - sample.draft_mass[slots]).sum()], np.float64)


def _figures(name: str, counters: Floats, outside: Floats, objective: Objective, seed: int) -> HeldoutFigures:
    """Summarize counters [N, 5, K] and counts outside the draft vocabulary [N, 3] of N samples."""
    num_samples, _, depths = counters.shape
    total = Counters.of(torch.from_numpy(counters.sum(axis=0)))
    length, *rates = bootstrap(counters.reshape(num_samples, -1), partial(_rates, num_depths=depths), seed=seed)
    share, mass = bootstrap(outside, lambda sums: sums[..., 1:] / np.maximum(sums[..., :1], 1), seed=seed)
    return HeldoutFigures(
        source=name,
        samples=num_samples,
        slots=int(outside[:, 0].sum()),
        loss=summarize(total, step=0, num_samples=num_samples, objective=objective).loss,
        acceptance_length=length,
        accuracy_by_depth=tuple(rates[:depths]),
        conditional_acceptance_by_depth=tuple(rates[depths:]),
        outside_vocabulary=share,
        mass_outside=mass,
    )


def _rates(sums: Floats, *, num_depths: int) -> Floats:
    """Return acceptance length, accuracy and conditional acceptance by depth, [..., 1 + 2K], of sums [..., 5·K]."""
    counters = sums.reshape(*sums.shape[:-1], -1, num_depths)
    _, counts, correct, hits, valid = np.moveaxis(counters, -2, 0)
    accuracy, acceptance = correct / np.maximum(counts, 1), hits / np.maximum(valid, 1)
    before = np.concatenate([np.ones_like(acceptance[..., :1]), acceptance[..., :-1]], axis=-1)
    conditional = np.divide(acceptance, before, out=np.zeros_like(acceptance), where=before > 0)
    return np.concatenate([1 + acceptance.sum(axis=-1, keepdims=True), accuracy, conditional], axis=-1)
