"""`study families`: every family of drafts, trained from one cache for as many steps or as long, in a table.

Each run is an ordinary one of `eaglepipe train` in a process of its own; what is finished is read back, what was
stopped goes on. To add a family, add its line to `FAMILIES`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eaglepipe import families
from eaglepipe.errors import ConfigError
from eaglepipe.files.publish import publish_bytes, publish_json
from eaglepipe.recipe.load import dump_recipe, load_recipe
from eaglepipe.recipe.tree import Recipe
from tests.studies.families_base import DEPTH, boundaries_of
from tests.studies.families_report import FamiliesReport, FamilyResult, FamilyRun
from tests.studies.families_runs import Report, measure_run, run_settings, whole_cache
from tests.studies.step_costs import Clock, step_seconds

_NORMED = ("draft.fc_norm=true", "draft.norm_output=true")
_AUX, _BLOCK_AUX = "draft.aux_layer_ids={aux_layers}", "draft.aux_layer_ids={block_layers}"
_LAST_AUX, _TOP_LAYER = "draft.aux_layer_ids=[{last_aux}]", "draft.aux_layer_ids=[{top_layer}]"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: overrides of the base recipe, in which names of `boundaries_of` stand in braces."""

    what: str
    settings: tuple[str, ...] = (_AUX,)


def _parallel(objective: str, depths: str, aux: str = _AUX) -> tuple[str, ...]:
    return (f"train.objective={objective}", f"train.{depths}", aux)


_DFLASH = _parallel("dflash", f"block_size={DEPTH + 1}", _BLOCK_AUX)
_DSPARK = _parallel("dspark", f"block_size={DEPTH}", _BLOCK_AUX)
FAMILIES: dict[str, Family] = {
    "eagle3": Family(what=f"EAGLE-3, K = {DEPTH}"),
    "eagle3-k1": Family(what="EAGLE-3, K = 1", settings=("train.ttt_steps=1", f"train.eval_depth={DEPTH}", _AUX)),
    "eagle3-last-aux": Family(what="EAGLE-3, last aux layer", settings=(_LAST_AUX,)),
    "eagle3-top-layer": Family(what="EAGLE-3, target's last", settings=(_TOP_LAYER,)),
    "eagle3.1": Family(what="EAGLE-3.1", settings=(*_NORMED, _AUX)),
    "eagle3.1-last-aux": Family(what="EAGLE-3.1, last aux layer", settings=(*_NORMED, _LAST_AUX)),
    "eagle3.1-top-layer": Family(what="EAGLE-3.1, target's last", settings=(*_NORMED, _TOP_LAYER)),
    "eagle3-random-head": Family(what="EAGLE-3, random head", settings=("draft.lm_head_init=random", _AUX)),
    "lk-alpha": Family(what="EAGLE-3, LK alpha", settings=("train.loss=alpha", _AUX)),
    "lk-lambda": Family(what="EAGLE-3, LK lambda", settings=("train.loss=lambda", _AUX)),
    "eagle1": Family(what="EAGLE-1", settings=("train.objective=eagle1", "draft.aux_layer_ids=null")),
    "peagle": Family(what="P-EAGLE", settings=_parallel("peagle", f"peagle_depths={DEPTH}")),
    "dflash": Family(what="DFlash, 5 layers", settings=(*_DFLASH, "draft.num_hidden_layers=5")),
    "dflash-1": Family(what="DFlash, 1 layer", settings=(*_DFLASH, "draft.num_hidden_layers=1")),
    "dspark": Family(what="DSpark, 5 layers", settings=(*_DSPARK, "draft.num_hidden_layers=5")),
    "dspark-1": Family(what="DSpark, 1 layer", settings=(*_DSPARK, "draft.num_hidden_layers=1")),
}
"""Rows by name."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Length of every training: optimizer steps or, if `seconds` is set, as many as take that long."""

    steps: int | None = None
    seconds: float | None = None
    clock: Clock = "wall"

    @property
    def label(self) -> str:
        """As the table and the runs' folders name it."""
        return f"{self.steps} steps" if self.seconds is None else f"{self.seconds:g} {self.clock} seconds"


def measure_families(
    recipe: Recipe,
    folder: Path,
    *,
    budget: Budget = Budget(),
    names: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    replayed: int = 0,
    report: Report = print,
) -> FamiliesReport:
    """Train and measure families; `FAMILIES` holds the rows.

    Args:
        recipe: of `demo_base` or `recipe_base`.
        folder: where the runs go. Several processes may share it.
        budget: default: the recipe's steps.
        names: rows, default all that the recipe's cache serves.
        seeds: of the drafts' weights and the order of samples; a training each.
        replayed: held-out answers to replay in rounds as well, as an engine makes them.

    Raises:
        ConfigError: no such row or none that the cache serves, or no length.
        EaglepipeError: a run failed, with its exit code; or was stopped, and goes on when this is called again.
    """
    if unknown := [name for name in names if name not in FAMILIES]:
        raise ConfigError(f"no family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    if budget.seconds is None and budget.steps is None:
        budget = Budget(steps=recipe.train.max_steps)
    if budget.seconds is None and budget.steps is None:
        raise ConfigError(f"the recipe of {recipe.name} has no train.max_steps: give --steps or --seconds")
    base = folder / "families.yaml"
    publish_bytes(base, dump_recipe(recipe).encode())
    if recipe.train.caches:
        cache = Path(recipe.train.caches[0].path)
    else:
        report("== the cache that all of them are trained from")
        cache = Path(whole_cache(base, report)["folder"])
    boundaries = boundaries_of(cache)
    unserved = _unserved(recipe, names or tuple(FAMILIES), boundaries)
    for name, reason in unserved.items():
        if names:
            raise ConfigError(f"{name}: {reason}")
        report(f"== {name} is left out: {reason}")
    settings = {
        name: tuple(one.format(**boundaries) for one in FAMILIES[name].settings)
        for name in names or FAMILIES
        if name not in unserved
    }
    place = folder / budget.label.replace(" ", "-")
    steps = _steps(base, settings, cache, budget, place, report)
    runs: dict[str, list[FamilyRun]] = {name: [] for name in settings}
    for seed in seeds:
        for name, own in settings.items():
            report(f"== {name}, seed {seed}: {FAMILIES[name].what}, {steps[name]} steps")
            overrides = [*run_settings(steps[name], cache), *own, f"train.seed={seed}"]
            run = place / f"seed-{seed}" / name
            runs[name].append(measure_run(base, overrides, run, seed=seed, replayed=replayed, report=report))
    return FamiliesReport(
        budget=budget.label,
        seeds=tuple(seeds),
        cache=str(cache),
        families=tuple(
            FamilyResult(name=name, what=FAMILIES[name].what, settings=own, steps=steps[name], runs=tuple(runs[name]))
            for name, own in settings.items()
        ),
    )


def _unserved(recipe: Recipe, names: Sequence[str], boundaries: Mapping[str, object]) -> dict[str, str]:
    """Return the rows that a cache does not serve, and what it lacks."""
    lacking = {}
    for name in names:
        row = FAMILIES[name].settings
        objective = next((one.partition("=")[2] for one in row if one.startswith("train.objective=")), None)
        family = families.FAMILIES[objective] if objective else families.DEFAULT_FAMILY
        if needs := family.unmet_needs(recipe.cache.model_dump(mode="json")):
            lacking[name] = f"{family.label} needs a cache with {' '.join(needs)}"
        elif _TOP_LAYER in row and "top_layer" not in boundaries:
            lacking[name] = "the cache does not hold the boundary after the target's last layer"
    return lacking


def _steps(
    base: Path, rows: Mapping[str, tuple[str, ...]], cache: Path, budget: Budget, place: Path, report: Report
) -> dict[str, int]:
    """Return the steps of each row; those that equal times come to are measured once and kept in `place`."""
    if budget.seconds is None:
        assert budget.steps is not None
        return dict.fromkeys(rows, budget.steps)
    file = place / "steps.json"
    known: dict[str, int] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if missing := {name: own for name, own in rows.items() if name not in known}:
        report(f"== the time of a step: {', '.join(missing)}")
        # Epochs for as many steps as are taken, which the time of one is about to decide.
        recipes = {name: load_recipe(base, [*run_settings(100, cache), *own]) for name, own in missing.items()}
        costs = step_seconds(recipes, cache, clock=budget.clock)
        known |= {name: max(1, round(budget.seconds / seconds)) for name, seconds in costs.items()}
        for name, seconds in costs.items():
            report(f"{name}: {seconds * 1000:.0f} ms, {known[name]} steps")
        publish_json(file, known)
    return {name: known[name] for name in rows}
