"""`study families`: every family of drafts, trained for as many steps from one cache of the demo's target, in a table.

Each row is an ordinary run of `eaglepipe train` in a process of its own; what is finished is read back, what was
stopped goes on. To add a family, add its line to `FAMILIES`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.opening import load_manifest
from eaglepipe.errors import ConfigError, EaglepipeError
from eaglepipe.files.publish import publish_bytes
from eaglepipe.recipe.load import dump_recipe, load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.layers import default_aux_layer_ids
from tests.studies.families_report import FamiliesReport, FamilyResult, FamilyRun

DEPTH = 7
OTHERS_WAIT_S = 5.0
_NORMED = ("draft.fc_norm=true", "draft.norm_output=true")
_LAST_AUX, _TOP_LAYER = "draft.aux_layer_ids=[{last_aux}]", "draft.aux_layer_ids=[{top_layer}]"
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row: overrides of the demo's recipe."""

    what: str
    settings: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "eagle3": Family(what=f"EAGLE-3, K = {DEPTH}"),
    "eagle3-k1": Family(what="EAGLE-3, K = 1", settings=("train.ttt_steps=1", f"train.eval_depth={DEPTH}")),
    "eagle3-last-aux": Family(what="EAGLE-3, last aux layer", settings=(_LAST_AUX,)),
    "eagle3-top-layer": Family(what="EAGLE-3, target's last", settings=(_TOP_LAYER,)),
    "eagle3.1": Family(what="EAGLE-3.1", settings=_NORMED),
    "eagle3.1-last-aux": Family(what="EAGLE-3.1, last aux layer", settings=(*_NORMED, _LAST_AUX)),
    "eagle3.1-top-layer": Family(what="EAGLE-3.1, target's last", settings=(*_NORMED, _TOP_LAYER)),
    "eagle3-random-head": Family(what="EAGLE-3, random head", settings=("draft.lm_head_init=random",)),
    "lk-alpha": Family(what="EAGLE-3, LK alpha", settings=("train.loss=alpha",)),
    "lk-lambda": Family(what="EAGLE-3, LK lambda", settings=("train.loss=lambda",)),
    "eagle1": Family(what="EAGLE-1", settings=("train.objective=eagle1", "draft.aux_layer_ids=null")),
    "peagle": Family(what="P-EAGLE", settings=("train.objective=peagle", f"train.peagle_depths={DEPTH}")),
}
"""Rows by name. The cache holds the demo's aux layers and the target's last: `{last_aux}` and `{top_layer}` stand for
the last of the former, and for the latter."""


def measure_families(
    demo: Path,
    *,
    steps: int | None = None,
    names: Sequence[str] = (),
    folder: Path | None = None,
    seeds: Sequence[int] = (0,),
    report: Report = print,
) -> FamiliesReport:
    """Train and measure families; `FAMILIES` says which there are.

    Args:
        demo: folder of a finished demo; nothing in it is changed but for `folder`.
        steps: optimizer steps of each, default the demo's own.
        names: which families, default all.
        folder: where cache and runs go, default `demo/families`. Several processes may share it.
        seeds: of the drafts' weights and the order of samples; a training each.

    Raises:
        ConfigError: no finished demo there, or no such family.
        EaglepipeError: a run failed, with its exit code; or was stopped, and goes on when this is called again.
    """
    chosen = {name: _find(name) for name in names} or FAMILIES
    folder = demo / "families" if folder is None else folder
    base = folder / "families.yaml"
    recipe = _base_recipe(demo, folder)
    steps = steps or recipe.train.max_steps
    if steps is None:
        raise ConfigError(f"{demo / 'demo.yaml'} has no train.max_steps: give --steps")
    publish_bytes(base, dump_recipe(recipe).encode())
    report("== the cache that all of them are trained from")
    cache = _whole_cache(base, report)
    found: dict[str, list[FamilyRun]] = {name: [] for name in chosen}
    for seed in seeds:
        place = folder / f"steps-{steps}-seed-{seed}"
        length = (f"train.seed={seed}", *_length(steps))
        for name, family in chosen.items():
            report(f"== {name}, seed {seed}: {family.what}")
            settings = (*length, *_settings(family, cache))
            found[name].append(_measure(base, settings, place / name, cache=cache, seed=seed, report=report))
    return FamiliesReport(
        steps=steps,
        seeds=tuple(seeds),
        cache=cache["folder"],
        families=tuple(
            FamilyResult(name=name, what=family.what, settings=_settings(family, cache), runs=tuple(found[name]))
            for name, family in chosen.items()
        ),
    )


def _whole_cache(base: Path, report: Report) -> dict[str, Any]:
    """What stage 1 says once every shard is there, those among them that another process had begun."""
    while not (cache := _run("precompute", base, ()))["complete"]:
        report(f"the rest is another process's; looking again in {OTHERS_WAIT_S:.0f} s")
        time.sleep(OTHERS_WAIT_S)
    return cache


def _length(steps: int) -> tuple[str, ...]:
    """As many epochs as the steps take, one evaluation at the end, and checkpoints to go on from."""
    return (
        f"train.epochs={steps}",
        f"train.max_steps={steps}",
        f"train.eval_every_steps={steps}",
        f"train.checkpoint_every_steps={max(1, steps // 4)}",
    )


def _settings(family: Family, cache: Mapping[str, Any]) -> tuple[str, ...]:
    *_, last_aux, top_layer = load_manifest(Path(cache["folder"])).spec.aux_layer_ids
    return tuple(setting.format(last_aux=last_aux, top_layer=top_layer) for setting in family.settings)


def _find(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"no family {name!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _base_recipe(demo: Path, folder: Path) -> Recipe:
    """The demo's recipe, from where its files are now, with a cache that serves every family."""
    target = next((path for path in (demo / "target.moved-away", demo / "target") if path.exists()), None)
    answers, recipe = demo / "data" / "regenerated.jsonl", demo / "demo.yaml"
    if target is None or not answers.exists() or not recipe.exists():
        raise ConfigError(f"{demo} is no finished demo: run `eaglepipe demo --folder {demo}` first")
    aux_layers, top_layer = _layers(target)
    settings = {
        "name": "families",
        "target.path": target.as_posix(),
        "data.sources": [{"path": answers.as_posix()}],
        "regenerate": None,
        "cache.root": (folder / "caches").as_posix(),
        "cache.supervision": "hidden",
        "cache.aux_layer_ids": [*aux_layers, top_layer],
        "cache.last_hidden": "all",
        "cache.full_head": True,
        "draft.aux_layer_ids": aux_layers,
        "train.caches": None,
        "train.ttt_steps": DEPTH,
        "train.heldout_fraction": 0.1,  # families differ by a few hundredths
        "train.eval_max_samples": None,
        "train.early_stop_patience": None,
    }
    return load_recipe(recipe, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def _measure(
    base: Path, settings: Sequence[str], folder: Path, *, cache: Mapping[str, Any], seed: int, report: Report
) -> FamilyRun:
    overrides = [*settings, f"train.output_dir={folder.as_posix()}", f"train.caches=[{cache['folder']}]"]
    result = _finished(folder, load_recipe(base, overrides))
    if result is None:
        result = _run("train", base, overrides)
    else:
        report(f"{folder}: already trained")
    return FamilyRun(
        seed=seed,
        acceptance_length=result["simulated_acceptance_length_end"],
        accuracy_by_depth=tuple(result["accuracy_by_depth"]),
        conditional_acceptance_by_depth=tuple(result["conditional_acceptance_by_depth"]),
        heldout_samples=result["heldout_samples"],
        seconds=result["seconds"],
    )


def _layers(target: Path) -> tuple[list[int], int]:
    """The default aux layers of a target, and the boundary after its last layer."""
    depth = json.loads((target / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    return list(default_aux_layer_ids(depth)), depth


def _finished(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """What a run of this very recipe left, if it came to its end."""
    result, trained = folder / "train.json", folder / "recipe.yaml"
    if not result.exists() or not trained.exists() or load_recipe(trained) != recipe:
        return None
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found if found["steps"] == recipe.train.max_steps else None


def _run(command: str, recipe: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One command of this package in a process of its own; its messages pass through, its result comes back."""
    words = [sys.executable, "-m", "eaglepipe", command, str(recipe), *overrides, "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            output = process.communicate()[0]
        except BaseException:
            process.terminate()  # it saves what it has
            process.wait()
            raise
    if process.returncode:
        error = EaglepipeError(f"`eaglepipe {command}` ended with exit code {process.returncode}; see above")
        error.exit_code = abs(process.returncode)
        raise error
    result: dict[str, Any] = json.loads(output)
    return result
