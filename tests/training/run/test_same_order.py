"""A run continues with its samples in their order: caches of one identity may have been computed in another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import CacheShare
from eaglepipe.errors import CacheError
from eaglepipe.train import run_training, train_from
from eaglepipe.training.data.source import JoinedCaches
from eaglepipe.training.run.run_plan import LAYOUT, check_contract, resume_contract
from tests.cache.derived import few
from tests.stage_one import cache_in_an_earlier_order
from tests.tiny_project import TinyProject
from tests.training.tiny_source import TinySource, tiny_recipe, tiny_source

REFUSED = "was trained from cache .* with its samples in another order"


def turned(source: TinySource) -> TinySource:
    return replace(source, samples=source.samples[::-1])


def test_the_same_samples_in_another_order_cannot_continue_a_run(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path, max_steps=2), tiny_source())
    with pytest.raises(CacheError, match=REFUSED):
        train_from(tiny_recipe(tmp_path, max_steps=4), turned(tiny_source()))
    assert train_from(tiny_recipe(tmp_path, max_steps=4), tiny_source()).steps == 4


@pytest.mark.parametrize("weights", [None, (1.0, 2.5)])
def test_the_order_of_every_cache_is_compared(tmp_path: Path, weights: tuple[float, float] | None) -> None:
    first, second = tiny_source(5), tiny_source(6, identity="second")
    recipe = tiny_recipe(tmp_path)
    saved = json.loads(json.dumps(resume_contract(recipe, JoinedCaches([first, second], weights))))
    check_contract(saved, resume_contract(recipe, JoinedCaches([first, second], weights)), "run")
    for caches in ([first, turned(second)], [turned(first), second]):
        with pytest.raises(CacheError, match=REFUSED):
            check_contract(saved, resume_contract(recipe, JoinedCaches(caches, weights)), "run")


def test_a_sample_of_another_length_or_id_is_another_order(tmp_path: Path) -> None:
    source, recipe = tiny_source(6), tiny_recipe(tmp_path)
    one, other = source.samples[:2]
    renamed = replace(source, samples=(replace(one, sample_id=other.sample_id + "x"), *source.samples[1:]))
    missing = replace(source, samples=source.samples[:-1])
    longer = replace(source, samples=(replace(one, input_ids=one.input_ids.repeat(2)), *source.samples[1:]))
    for changed in (renamed, missing, longer):
        with pytest.raises(CacheError, match=REFUSED):
            check_contract(resume_contract(recipe, source), resume_contract(recipe, changed), "run")


def test_a_run_of_a_release_that_recorded_no_order_goes_on(tmp_path: Path) -> None:
    older = resume_contract(tiny_recipe(tmp_path), tiny_source())
    del older[LAYOUT]
    check_contract(older, resume_contract(tiny_recipe(tmp_path), tiny_source()), "run")


def test_a_cache_computed_anew_in_another_order_does_not_continue_a_run(
    project: TinyProject, full_cache: Path, tmp_path: Path
) -> None:
    settings = {**few(project), "cache.full_head": "true", "train.output_dir": tmp_path / "run", "train.max_steps": 1}
    short = project.recipe(**settings)
    other = cache_in_an_earlier_order(project, tmp_path / "caches", group_tokens=1, **settings)
    assert Cache.open(other).identity == Cache.open(full_cache).identity
    run_training(short, [full_cache])
    for caches in ([other], [CacheShare(folder=other)]):
        with pytest.raises(CacheError, match=REFUSED):
            run_training(short, caches)
