"""A finished run is measured on the cache that it was trained from, also if its recipe finds a newer one by now."""

import json
import shutil
from pathlib import Path

import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import find_cache
from eaglepipe.errors import CacheError
from eaglepipe.evaluation.finished_run import open_run
from eaglepipe.export.trained import open_trained
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.train import run_training
from tests.cache.derived import FEW
from tests.stage_one import quiet
from tests.tiny_project import TinyProject


def test_a_run_is_measured_on_its_own_cache_and_on_no_other_unless_it_is_named(
    project: TinyProject, tmp_path: Path
) -> None:
    rows, lines = tmp_path / "rows.jsonl", project.sources[0].read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:4]))
    root, run = tmp_path / "caches", tmp_path / "run"
    settings = {"cache.root": root, "train.output_dir": run, "train.max_steps": 1, "vocab.draft_size": "null"}
    recipe = project.recipe(**FEW, **settings, **{"data.sources": json.dumps([{"path": str(rows)}])})
    own = Path(run_precompute(recipe, report=quiet).folder)
    run_training(recipe, [own])
    rows.write_text("".join(lines[4:9]))
    newer = Path(run_precompute(recipe, report=quiet).folder)
    assert find_cache(recipe) == newer != own
    identities = Cache.open(own).identity, Cache.open(newer).identity

    assert open_run(run).source.identity == identities[0]
    cache = open_trained(run).cache
    assert cache is not None and cache.identity == identities[0]
    with pytest.raises(CacheError, match="was trained from cache"):
        run_training(recipe, [find_cache(recipe)])
    shutil.rmtree(own)
    with pytest.raises(
        CacheError, match=rf"trained from cache {identities[0]}, and .* finds {identities[1]} .*--cache"
    ):
        open_run(run)
    assert open_run(run, [newer]).source.identity == identities[1]
