"""Stage 2 on a cache that stage 1 really wrote."""

import json
from pathlib import Path

import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import CacheShare, caches_of
from eaglepipe.errors import CacheError, ConfigError, CorruptError
from eaglepipe.evaluation.bigram import bigram_acceptance_length, bigram_table
from eaglepipe.files.lock import folder_lock
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import preview_training, run_training
from eaglepipe.training.data.order import split_samples
from eaglepipe.training.data.source import open_caches
from eaglepipe.training.run.metrics import read_metrics
from tests.tiny_project import TinyProject


@pytest.fixture
def recipe(project: TinyProject, tmp_path: Path) -> Recipe:
    """The tiny project's recipe with a target that is gone."""
    return project.recipe(**{"target.path": "gone", "train.output_dir": str(tmp_path / "run")})


def test_a_draft_is_trained_without_the_target(recipe: Recipe, sealed_cache: Path, tmp_path: Path) -> None:
    result = run_training(recipe, [sealed_cache])
    summary = json.loads((tmp_path / "run" / "train.json").read_text())
    assert summary["steps"] == result.steps == result.total_steps > 1
    assert result.heldout_loss_end is not None and result.heldout_loss_start is not None
    assert result.heldout_loss_end < result.heldout_loss_start
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoints", "draft", "metrics.jsonl", "recipe.yaml", "train.json"}


def test_preview_counts_the_steps_that_the_run_takes(recipe: Recipe, sealed_cache: Path, tmp_path: Path) -> None:
    preview = preview_training(recipe, [sealed_cache])
    assert not (tmp_path / "run").exists()
    assert 0 < preview.trainable_parameters < preview.draft_parameters
    assert preview.train_samples + preview.heldout_samples == Cache.open(sealed_cache).num_samples
    assert run_training(recipe, [sealed_cache]).total_steps == preview.total_steps


def test_a_bigram_table_has_an_acceptance_length_on_the_same_split(recipe: Recipe, sealed_cache: Path) -> None:
    source = open_caches([sealed_cache])
    split = split_samples(source.index.sample_ids, recipe.train.heldout_fraction)
    table = bigram_table(source.read(int(number)) for number in split.train)
    heldout = (source.read(int(number)) for number in split.heldout)
    assert 1.0 <= bigram_acceptance_length(table, heldout, 3) < 4.0


def test_a_flipped_bit_stops_training_and_names_shard_and_sample(recipe: Recipe, cache_copy: Path) -> None:
    shard = sorted((cache_copy / "shards").glob("*.arrow"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptError, match=rf"{shard.name}, sample \d+ \('"):
        run_training(recipe, [cache_copy])


def test_an_incomplete_cache_is_refused(recipe: Recipe, cache_copy: Path) -> None:
    (cache_copy / "manifest.json").unlink()
    with pytest.raises(CacheError, match="incomplete"):
        run_training(recipe, [cache_copy])


def test_no_cache_at_all_says_what_to_do(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="eaglepipe precompute"):
        run_training(recipe, [])


def test_two_caches_of_one_target_train_as_one(recipe: Recipe, sealed_cache: Path, cache_copy: Path) -> None:
    single, joined = open_caches([sealed_cache]), open_caches([sealed_cache, cache_copy])
    count = len(single.index.sample_ids)
    assert joined.index.sample_ids == [*single.index.sample_ids] * 2 and joined.identity != single.identity
    assert (joined.read(count + 3).input_ids == single.read(3).input_ids).all()
    run_training(
        recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 2})}), [sealed_cache] * 2
    )
    assert len(list(read_metrics(Path(str(recipe.train.output_dir)) / "metrics.jsonl"))) == 4


def test_a_weighted_cache_counts_as_often_as_its_weight(recipe: Recipe, sealed_cache: Path, cache_copy: Path) -> None:
    shares = [CacheShare(folder=sealed_cache), CacheShare(folder=cache_copy, weight=2.5)]
    plain, weighted = open_caches([sealed_cache, cache_copy]), open_caches(shares)
    turned = open_caches([CacheShare(folder=sealed_cache, weight=2.5), CacheShare(folder=cache_copy)])
    assert len({plain.identity, weighted.identity, turned.identity}) == 3
    assert open_caches([CacheShare(folder=sealed_cache)]).identity == open_caches([sealed_cache]).identity
    assert plain.index.weights is None and weighted.index.weights is not None
    assert sorted(set(weighted.index.weights)) == [1.0, 2.5]
    before, after = preview_training(recipe, [sealed_cache] * 2), preview_training(recipe, shares)
    assert after.train_tokens / before.train_tokens == pytest.approx(3.5 / 2, rel=0.1)
    assert run_training(recipe, shares).total_steps == after.total_steps > before.total_steps


def test_other_weights_do_not_continue_a_run(recipe: Recipe, sealed_cache: Path) -> None:
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 2})})
    run_training(short, [CacheShare(folder=sealed_cache, weight=2.0)])
    with pytest.raises(CacheError, match="was trained from cache"):
        run_training(short, [sealed_cache])


def test_train_caches_takes_paths_and_weights(project: TinyProject, sealed_cache: Path) -> None:
    named = project.recipe(**{"train.caches": f"[{sealed_cache}, {{path: ~/b, weight: 0.5}}]"})
    expected = [CacheShare(folder=sealed_cache), CacheShare(folder=Path("~/b").expanduser(), weight=0.5)]
    assert caches_of(named) == expected
    for wrong in ("{path: b, wieght: 2}", "{path: b, weight: 0}", "{path: b, weight: .inf}"):
        with pytest.raises(ConfigError, match=r"train\.caches\.0\.w"):
            project.recipe(**{"train.caches": f"[{wrong}]"})


def test_caches_of_different_vocabularies_are_not_joined(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    other = project.recipe(**{"cache.root": str(tmp_path), "vocab.draft_size": 100, "data.sources.0.max_samples": 4})
    folder = Path(run_precompute(other, report=lambda _: None).folder)
    with pytest.raises(CacheError, match="draft vocabular"):
        open_caches([sealed_cache, folder])


def test_second_run_in_a_folder_is_refused_before_it_touches_anything(
    recipe: Recipe, sealed_cache: Path, tmp_path: Path
) -> None:
    with folder_lock(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
        with pytest.raises(ConfigError, match="another process is writing it"):
            run_training(recipe, [sealed_cache])
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n'
