"""`study codecs`: what every encoding costs, and what it does to a draft that is trained the same way from it.

All caches are made from one exact cache; all drafts see the same samples in the same order and are judged on the exact
cache. What is finished is kept, so that a stopped measurement goes on.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from eaglepipe.cache.manifest import MANIFEST_NAME, REPORT_FILE
from eaglepipe.cache.reader import Cache
from eaglepipe.errors import CacheError, ConfigError
from eaglepipe.recipe.load import load_recipe
from tests.studies.codecs_report import CodecsReport, describe_variant
from tests.studies.codecs_run import TrainingRun, train_one
from tests.studies.codecs_states import measure_states
from tests.studies.codecs_supervision import measure_supervision
from tests.studies.codecs_variants import EXACT, VARIANTS, Variant, make_cache, one_of_each_cache
from tests.studies.workers import Workers

SEEDS = (0, 1, 2)


def measure_codecs(
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    max_steps: int | None = None,
    jobs: int = 2,
    names: Sequence[str] = (),
    variants: Sequence[Variant] = VARIANTS,
) -> CodecsReport:
    """Compare encodings on a finished demo, below `folder/bench/codecs`.

    Args:
        max_steps: of each training; default: the demo's own.
        jobs: processes at once, of one thread each.
        names: of variants to compare with the exact cache; default: all.

    Raises:
        ConfigError: no finished demo there, or no such variant.
        CacheError: its cache is not the exact one.
    """
    if unknown := sorted({*names} - {variant.name for variant in variants}):
        raise ConfigError(f"no encoding {unknown[0]!r}; there are {', '.join(one.name for one in variants)}")
    variants = [one for one in variants if not names or one.name in {EXACT, *names}]
    recipe_file, exact = _finished_demo(folder)
    steps = max_steps or load_recipe(recipe_file).train.max_steps or 80
    place = folder / "bench" / "codecs"
    named = {variant.name: variant for variant in variants}
    with Workers(jobs) as workers:
        made = workers.all(
            "caches",
            {one.cache_name: partial(make_cache, one, exact, place / "caches") for one in one_of_each_cache(variants)},
        )
        caches = {name: made[variant.cache_name] for name, variant in named.items()}
        runs = [
            TrainingRun(
                recipe_file=recipe_file,
                exact=exact,
                variant=variant,
                cache=caches[variant.name],
                seed=seed,
                max_steps=steps,
                results=place / "results",
            )
            for seed in seeds
            for variant in variants
        ]
        errors = workers.all(
            "supervision",
            {name: partial(measure_supervision, one, exact, caches[name]) for name, one in named.items()},
        )
        states = workers.all("states", {name: partial(measure_states, exact, caches[name]) for name in named})
        results = workers.all("drafts", {(run.variant.name, run.seed): partial(train_one, run) for run in runs})
    by_variant = {name: [results[name, seed] for seed in seeds] for name in named}
    return CodecsReport(
        target=Cache.open(exact).manifest.name,
        steps=steps,
        seeds=tuple(seeds),
        heldout_samples=by_variant[EXACT][0].heldout_samples,
        variants=tuple(
            describe_variant(
                name,
                by_variant[name],
                by_variant[EXACT],
                bytes_per_token=Cache.open(caches[name]).manifest.bytes_per_token,
                aux_relative_rms=_aux_error(caches[name]),
                supervision=errors[name],
                states=states[name],
            )
            for name in named
        ),
    )


def _finished_demo(folder: Path) -> tuple[Path, Path]:
    """The recipe as it was trained with, and the exact cache."""
    recipe_file = folder / "train" / "recipe.yaml"
    manifests = sorted((folder / "caches").glob(f"*/{MANIFEST_NAME}"))
    if not recipe_file.is_file() or len(manifests) != 1:
        raise ConfigError(
            f"{folder}: not a finished demo (one cache and train/recipe.yaml); run `eaglepipe demo` first"
        )
    cache = Cache.open(manifests[0].parent)
    found = (cache.spec.supervision, cache.spec.supervision_codec, cache.spec.aux_codec)
    if found != ("hidden", "bf16", "bf16"):
        raise CacheError(
            f"{cache.folder} stores {found[0]} supervision in {found[1]} and aux states in {found[2]}; the comparison "
            "starts from cache.profile=exact"
        )
    return recipe_file, cache.folder


def _aux_error(folder: Path) -> float:
    """Root mean square error of the aux states relative to their own; 0 where they were not recoded."""
    report = folder / REPORT_FILE
    if not report.exists():
        return 0.0
    return float(json.loads(report.read_bytes())["aux_hidden_states"]["relative_rms"])
