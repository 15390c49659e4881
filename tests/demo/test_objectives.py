"""The demo's recipe under each objective: one cache for all, a run of its own for each."""

from pathlib import Path

import pytest

from eaglepipe.demo.demo_recipe import demo_recipe
from eaglepipe.demo.size import FAST, STANDARD, DemoSize
from eaglepipe.errors import ConfigError
from eaglepipe.recipe.load import load_recipe
from eaglepipe.training.objectives.interface import make_objective


@pytest.mark.parametrize(("size", "depths"), [(FAST, 3), (STANDARD, 7)])
def test_objectives_share_the_cache_and_nothing_else(tmp_path: Path, size: DemoSize, depths: int) -> None:
    recipes = [demo_recipe(tmp_path, size=size, objective=name) for name in ("eagle3", "peagle")]
    for section in ("target", "data", "vocab", "cache", "regenerate"):
        assert getattr(recipes[0], section) == getattr(recipes[1], section)
    assert [recipe.train.output_dir for recipe in recipes] == [f"{tmp_path}/train", f"{tmp_path}/train-peagle"]
    assert [len(make_objective(recipe.train).loss_weights) for recipe in recipes] == [depths] * 2


@pytest.mark.parametrize("objective", ["eagle3", "eagle1", "peagle"])
def test_the_recipe_that_is_left_is_the_one_that_ran(tmp_path: Path, objective: str) -> None:
    recipe = demo_recipe(tmp_path, size=FAST, objective=objective)
    (file,) = tmp_path.glob("demo*.yaml")
    assert load_recipe(file) == recipe and recipe.cache.root == f"{tmp_path}/caches"


def test_eagle1_gets_the_cache_that_it_needs_and_a_run_of_its_own(tmp_path: Path) -> None:
    recipe = demo_recipe(tmp_path, objective="eagle1")
    assert (recipe.cache.last_hidden, recipe.cache.full_head) == ("all", True)
    assert recipe.train.output_dir == f"{tmp_path}/train-eagle1"


def test_an_objective_that_the_demo_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no objective 'eagle9'; it knows eagle3, eagle1, eagle2, peagle"):
        demo_recipe(tmp_path, objective="eagle9")
    assert not any(tmp_path.iterdir())


def test_a_folder_takes_demos_of_one_size(tmp_path: Path) -> None:
    demo_recipe(tmp_path, size=FAST)
    left = (tmp_path / "demo.yaml").read_bytes()
    with pytest.raises(ConfigError, match="of a fast demo, not of a standard one: give another --folder"):
        demo_recipe(tmp_path)
    assert (tmp_path / "demo.yaml").read_bytes() == left
    demo_recipe(tmp_path, size=FAST, objective="peagle")
