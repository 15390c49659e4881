"""The identity changes with what changes a cache's meaning, and with nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from eaglepipe.cache.storage import find_cache, list_caches
from eaglepipe.cache_tools.describe import describe_root, root_table
from eaglepipe.errors import CacheError
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.json_object import diff_fields
from eaglepipe.precompute.content_identity import read_identity
from eaglepipe.precompute.inputs import read_stage1_inputs
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.config import PrecomputeConfig
from eaglepipe.recipe.family_settings import (
    Eagle1TrainConfig,
    Eagle3DraftConfig,
    Eagle3TrainConfig,
    PeagleDraftConfig,
    PeagleTrainConfig,
)
from eaglepipe.recipe.foreign import families_with
from eaglepipe.recipe.training import DraftConfig
from tests.tiny_project import TinyProject

OTHER_VALUES: dict[str, Any] = {
    "output_dir": "elsewhere",
    "caches": ["a"],
    "objective": "eagle1",
    "device": "cpu",
    "dtype": "float32",
    "betas": [0.8, 0.9],
    "full_attention_layers": [],
    "lm_head_init": "random",
    "warmup_ratio": 0.5,
    "heldout_fraction": 0.5,
    "step_decay": 0.5,
    "loss": "lambda",
    "cod_ratio": 0.5,
    "cod_min_ratio": 0.5,
    "min_learning_rate_ratio": 0.5,
    "aux_layer_ids": [2],
    "attention_bias": False,
    "init": "a",
    "trackers": ["tensorboard"],
}


def identity(project: TinyProject, **overrides: Any) -> str:
    recipe = project.recipe(**{key: json.dumps(value) for key, value in overrides.items()})
    return read_identity(read_stage1_inputs(recipe)).digest


@pytest.fixture(scope="module")
def own(project: TinyProject) -> str:
    return identity(project)


def other(name: str, default: Any) -> Any:
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    return (not default) if isinstance(default, bool) else 64


def objective_of(setting: str) -> dict[str, Any]:
    """What else a recipe says that has this setting."""
    if setting == "train.objective":
        return {"train.caches": ["a"]}
    objective = next(iter(families_with(tuple(setting.split(".")))), "eagle3")
    steps = {"train.ttt_steps": 7} if objective == "peagle" else {}
    return {} if objective == "eagle3" else {"train.objective": objective, "train.caches": ["a"], **steps}


SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "train": (Eagle3TrainConfig, Eagle1TrainConfig, PeagleTrainConfig),
    "draft": (PeagleDraftConfig, Eagle3DraftConfig, DraftConfig),
    "precompute": (PrecomputeConfig,),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_no_field_outside_the_caches_own_sections_changes_it(project: TinyProject, own: str, name: str) -> None:
    settings = {field: info for section in SECTIONS[name] for field, info in section.model_fields.items()}
    for field, info in settings.items():
        changed = {f"{name}.{field}": other(field, info.default)}
        changed |= objective_of(f"{name}.{field}")
        changed |= {"train.loss": "lambda"} if field.startswith("lk_") else {}
        if field in ("batch_tokens", "micro_batch_tokens") and name == "train":
            changed = {"train.batch_tokens": 512, "train.micro_batch_tokens": 64}
        assert identity(project, **changed) == own, changed


@pytest.mark.parametrize(
    "changed",
    [
        {"target.dtype": "bfloat16"},
        {"target.revision": "main"},
        {"data.max_length": 255},
        {"data.on_long": "drop"},
        {"data.mask": "prefix"},
        {"data.supervise": "last"},
        {"data.chat_template_kwargs": {"a": 1}},
        {"data.sources.0.max_samples": 5},
        {"data.sources.0.name": "renamed"},
        {"vocab.draft_size": 159},
        {"cache.supervision": "dense"},
        {"cache.aux_codec": "fp32"},
        {"cache.aux_codec": "int8"},
        {"cache.hidden_codec": "fp8"},
        {"cache.supervision": "sparse"},
        {"cache.profile": "compact"},
        {"cache.profile": "lean"},
        {"cache.profile": "tiny"},
        {"cache.hidden_codec": "fp16"},
        {"cache.aux_layer_ids": [2, 3, 5]},
        {"cache.full_head": True},
        {"cache.last_hidden": "all"},
        {"cache.shard_bytes": 700000},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_fields_that_alter_bytes_change_it(project: TinyProject, own: str, changed: dict[str, Any]) -> None:
    assert identity(project, **changed) != own


@pytest.mark.parametrize(
    "changed",
    [
        {"cache.root": "elsewhere"},
        {"cache.probs_codec": "fp32"},
        {"cache.tolerance": 0.5},
        {"cache.max_entries": 17},
        {"cache.profile": None},
        {"cache.profile": "tiny", "cache.supervision": "hidden", "cache.aux_codec": "bf16"},
        {"cache.aux_layer_ids": [2, 4, 5]},
        {"target.dtype": "float32"},
        {"target.trust_remote_code": True},
        {"name": "other"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_fields_that_alter_no_byte_leave_it(project: TinyProject, own: str, changed: dict[str, Any]) -> None:
    """A place, a codec that is not in use, a default spelled out."""
    assert identity(project, **changed) == own


def test_tolerance_and_cap_matter_only_to_sparse_supervision(project: TinyProject) -> None:
    sparse = identity(project, **{"cache.supervision": "sparse"})
    assert identity(project, **{"cache.supervision": "sparse", "cache.tolerance": 0.5}) != sparse
    assert identity(project, **{"cache.supervision": "sparse", "cache.max_entries": 17}) != sparse
    assert identity(project, **{"cache.supervision": "sparse", "cache.hidden_codec": "fp32"}) == sparse


def test_moved_target_and_data_give_the_same_identity(project: TinyProject, own: str, tmp_path: Path) -> None:
    target = shutil.copytree(project.target, tmp_path / "t")
    sources = [shutil.copy(path, tmp_path / path.name) for path in sorted(project.sources, key=_recipe_order(project))]
    moved = identity(project, **{"target.path": str(target), "data.sources": [{"path": str(s)} for s in sources]})
    assert moved == own


def _recipe_order(project: TinyProject) -> Any:
    order = [source.path for source in project.recipe().data.sources]
    return lambda path: order.index(str(path))


def test_one_changed_weight_or_word_changes_it(project: TinyProject, own: str, tmp_path: Path) -> None:
    target = Path(shutil.copytree(project.target, tmp_path / "t"))
    weights = load_file(target / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    assert identity(project, **{"target.path": str(target)}) != own
    first = project.recipe().data.sources[0].path
    changed = tmp_path / Path(first).name
    changed.write_text(Path(first).read_text().replace("the", "thee", 1))
    assert identity(project, **{"data.sources.0.path": str(changed)}) != own


def test_train_finds_the_cache_by_the_recipe_after_the_target_is_gone(project: TinyProject, sealed_cache: Path) -> None:
    recipe = project.recipe(**{"cache.root": sealed_cache.parent, "train.seed": 99, "draft.fc_norm": True})
    assert find_cache(recipe) == sealed_cache


def test_a_recipe_without_a_cache_is_told_what_differs_from_the_nearest(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    root = {"cache.root": sealed_cache.parent}
    nearest = (
        rf"no cache for recipe 'tiny' .*{sealed_cache.name} differs from the recipe in data\.max_length: 256 -> 100"
    )
    with pytest.raises(CacheError, match=nearest):
        find_cache(project.recipe(**root, **{"data.max_length": 100}))
    with pytest.raises(CacheError, match=f"no cache for recipe 'other' .*it holds {sealed_cache.name}"):
        find_cache(project.recipe(**root, name="other"))
    with pytest.raises(CacheError, match="it is empty"):
        find_cache(project.recipe(**{"cache.root": tmp_path}))


def test_a_vocabulary_beyond_the_targets_is_the_same_cache_as_none(project: TinyProject) -> None:
    whole = identity(project, **{"vocab.draft_size": None})
    assert identity(project, **{"vocab.draft_size": 320}) == identity(project, **{"vocab.draft_size": 9999}) == whole


def test_an_unreadable_cache_is_told_and_listed_and_hides_no_other(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    broken = tmp_path / sealed_cache.name
    shutil.copytree(sealed_cache, broken)
    shutil.copytree(sealed_cache, tmp_path / "sound")
    (broken / "manifest.json").write_text("{")
    listed = describe_root(tmp_path)
    assert [(Path(info["folder"]).name, info["complete"]) for info in listed] == [("sound", True), (broken.name, False)]
    assert "manifest.json" in listed[1]["error"] and "unreadable" in root_table(listed, tmp_path)
    recipe = project.recipe(**{"cache.root": tmp_path})
    assert find_cache(recipe) == tmp_path / "sound"
    shutil.rmtree(tmp_path / "sound")
    with pytest.raises(CacheError, match=r"one cannot be read: .*manifest\.json"):
        find_cache(recipe)


def test_incomplete_cache_is_not_found_and_says_what_is_missing(project: TinyProject, tmp_path: Path) -> None:
    recipe = project.recipe(**{"cache.root": tmp_path})
    run_precompute(recipe, dry_run=True, report=lambda _: None)
    assert [found.manifest for found in list_caches(tmp_path)] == [None]
    with pytest.raises(CacheError, match=r"incomplete, 0 of \d+ shards done; missing: shards 0, 1"):
        find_cache(recipe)


def test_difference_names_leaves() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None}
    new = {"a": {"b": 2, "c": [1, 2]}, "e": "x"}
    assert list(diff_fields(old, new)) == ["a.b: 1 -> 2", 'e: null -> "x"']
    assert hash_json({"x": 1, "y": [1.5, "é"]}) == hash_json(dict(reversed({"x": 1, "y": [1.5, "é"]}.items())))
