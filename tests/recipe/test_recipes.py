"""Every recipe that ships describes a run."""

from pathlib import Path

import pytest

from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import load_recipe
from eaglepipe.resources import shipped_recipes
from tests.tiny_project import TinyProject

RECIPES = shipped_recipes()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_is_how_to_launch_it_and_what_it_costs(name: str) -> None:
    comment = "\n".join(line for line in RECIPES[name].read_text().splitlines() if line.startswith("#"))
    for word in ("Launch:", "Disk:", "Time", "cceptance length"):
        assert word in comment
    assert load_recipe(RECIPES[name]).name == name


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_plans_a_cache_when_its_target_and_data_are_at_hand(
    name: str, project: TinyProject, tmp_path: Path
) -> None:
    sources = [{"path": str(path)} for path in project.sources]
    overrides = [
        f"target.path={project.target}",
        f"data.sources={sources}",
        f"cache.root={tmp_path}",
        "vocab.draft_size=160",
        "data.max_length=512",  # positions of the target at hand
        "cache.aux_layer_ids=null",  # and its layers
    ]
    result = run_precompute(load_recipe(RECIPES[name], overrides), dry_run=True, report=lambda _: None)
    assert result.samples > 0 and result.shards > 0
