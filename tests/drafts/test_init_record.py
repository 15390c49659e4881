"""A run initialised from a published draft resumes to the same draft without that draft's folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import find_cache
from eaglepipe.errors import ConfigError, CorruptError, DraftError
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import preview_training, run_training
from eaglepipe.training.objectives.builders import build_eagle3_draft, publish_draft
from tests.tiny_project import TinyProject

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture
def recipe(project: TinyProject, sealed_cache: Path, tmp_path: Path) -> Recipe:
    settings = {"train.output_dir": tmp_path / "plain", "train.max_steps": 4, "train.eval_every_steps": 2}
    return project.recipe(**{"cache.root": sealed_cache.parent, **settings})


@pytest.fixture
def published(recipe: Recipe, sealed_cache: Path, tmp_path: Path) -> Path:
    """A draft whose embeddings, frozen in training, are not the target's."""
    draft = build_eagle3_draft(Cache.open(sealed_cache), recipe.draft, seed=5)
    with torch.no_grad():
        draft.get_parameter(EMBEDDINGS).mul_(1.5)
    publish_draft(draft, tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def second(recipe: Recipe, published: Path, tmp_path: Path) -> Recipe:
    """Stopped after two of its steps."""
    changed = initialised_from(recipe, published, tmp_path / "second")
    run_training(with_train(changed, max_steps=2), [find_cache(recipe)])
    return changed


def initialised_from(recipe: Recipe, init: Path, run: Path) -> Recipe:
    changed = recipe.model_copy(update={"draft": recipe.draft.model_copy(update={"init": str(init)})})
    return with_train(changed, output_dir=str(run))


def with_train(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.train.output_dir or "") / "draft" / "model.safetensors")


def test_run_resumes_to_the_same_draft_without_the_folder_of_its_init(
    second: Recipe, recipe: Recipe, published: Path, tmp_path: Path
) -> None:
    caches = [find_cache(recipe)]
    never_stopped = initialised_from(recipe, published, tmp_path / "whole")
    run_training(never_stopped, caches)
    own = load_file(published / "model.safetensors")[EMBEDDINGS]
    shutil.rmtree(published)
    assert any("is gone" in note for note in preview_training(second, caches).notes)
    assert run_training(second, caches).steps == 4
    expected = weights(never_stopped)
    for name, tensor in weights(second).items():
        assert torch.equal(tensor, expected[name]), name
    assert torch.equal(expected[EMBEDDINGS], own)


def test_missing_folder_is_an_error_unless_the_run_recorded_it(
    second: Recipe, recipe: Recipe, published: Path, tmp_path: Path
) -> None:
    caches = [find_cache(recipe)]
    shutil.rmtree(published)
    with pytest.raises(DraftError, match=r"elsewhere: no such folder; this run was initialised from .*published"):
        run_training(initialised_from(recipe, tmp_path / "elsewhere", tmp_path / "second"), caches)
    with pytest.raises(ConfigError, match="init"):
        run_training(with_train(recipe, output_dir=str(tmp_path / "second")), caches)
    with pytest.raises(DraftError, match="no weights"):
        run_training(initialised_from(recipe, published, tmp_path / "third"), caches)
    with pytest.raises(ConfigError, match=r"train\.seed"):
        run_training(with_train(second, seed=1), caches)


def test_damage_to_the_recorded_tensors_is_seen(second: Recipe, recipe: Recipe, tmp_path: Path) -> None:
    tensors = tmp_path / "second" / "checkpoints" / "start.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-3] ^= 0x40
    tensors.write_bytes(content)
    with pytest.raises(CorruptError, match=r"start\.safetensors: missing or damaged"):
        run_training(second, [find_cache(recipe)])
    tensors.with_name("start.json").unlink()
    assert run_training(second, [find_cache(recipe)]).steps == 4
