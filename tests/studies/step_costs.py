"""The time that an optimizer step of each family takes, measured in turn in one process: equal times become steps."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from eaglepipe.bench.timing import median_seconds, synchronise
from eaglepipe.drafts.mask_token import with_mask_token
from eaglepipe.errors import ConfigError
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import run_folder
from eaglepipe.training.data.aux_subset import choose_aux_layers
from eaglepipe.training.data.batch import DataPosition, EncodedBatch, StepHeader, TrainingSource
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.data.source import open_caches
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.ranks.distributed import World, join_world
from eaglepipe.training.run.run_plan import plan_run

Clock = Literal["wall", "cpu"]
CLOCKS: Mapping[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
ROUNDS = 5
WARM_UP = 2


def find_clock(name: str) -> Clock:
    """Raises ConfigError if there is no such clock."""
    for clock in CLOCKS:
        if name == clock:
            return clock
    raise ConfigError(f"no clock {name!r}; there are {', '.join(CLOCKS)}")


def step_seconds(recipes: Mapping[str, Recipe], cache: Path, *, clock: Clock, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds of a step of each recipe's run, reading not included.

    Args:
        clock: wall counts what else the machine does; cpu adds up the seconds of all threads of this process.
    """
    device = next(iter(recipes.values())).train.device
    with join_world(device) as world:
        steps = {name: _steps(recipe, cache, world, count=WARM_UP + rounds) for name, recipe in recipes.items()}
        timed = {name: partial(_timed_step, taken, CLOCKS[clock], world) for name, taken in steps.items()}
        for _ in range(WARM_UP):
            for step in timed.values():
                step()
        return median_seconds(timed, rounds)


def _timed_step(steps: Iterator[Callable[[], object]], clock: Callable[[], float], world: World) -> float:
    step = next(steps)
    synchronise(world.device)
    started = clock()
    step()
    synchronise(world.device)
    return clock() - started


def _steps(recipe: Recipe, cache: Path, world: World, *, count: int) -> Iterator[Callable[[], object]]:
    """Yield the first steps of a run, their batches read, to be taken by a call; the draft learns from none twice."""
    source = choose_aux_layers(open_caches([cache]), recipe.draft.aux_boundaries)
    recipe = with_mask_token(recipe, source, run_folder(recipe))
    learner = Learner(source, build_draft(source, recipe.train, recipe.draft), recipe.train, world)
    for header, batches in _loaded(recipe, source, learner, world, count):
        yield partial(learner.step, batches, header.counts, recipe.train.learning_rate)


def _loaded(
    recipe: Recipe, source: TrainingSource, learner: Learner, world: World, count: int
) -> list[tuple[StepHeader, list[EncodedBatch]]]:
    plan = plan_run(source, recipe.train, world)
    costs = learner.costs(source.index, training=True)
    plans = plan_steps(plan.order, costs, limits=plan.limits, start=DataPosition())
    with Loader(
        source,
        islice(plans, count),
        draw=partial(learner.objective.draw, training=True),
        columns=learner.objective.columns,
        device=world.device,
        prefetch_batches=recipe.train.prefetch_batches,
    ) as loader:
        return [(header, list(batches)) for header, batches in loader]
