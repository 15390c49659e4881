"""Caches from other tools' states: bit for bit those of stage 1, and no sample that cannot be trusted."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglepipe.cache.manifest import PLAN_NAME, Plan, load_document
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.writer import ShardWriter
from eaglepipe.cache_tools.repair import repair_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, ConfigError, DataError, StoppedError
from eaglepipe.precompute.imported.command import import_overrides
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import run_training
from eaglepipe.training.data import order
from eaglepipe.training.run.metrics import read_metrics
from tests.cache.derived import digests, few, make_cache, samples
from tests.precompute.imported.foreign_files import (
    States,
    states_of,
    write_modelopt,
    write_specforge,
    write_speculators,
)
from tests.stage_one import quiet
from tests.tiny_project import TinyProject

WRITERS: dict[str, Callable[[Path, list[States]], Path]] = {
    "speculators": write_speculators,
    "specforge": write_specforge,
    "modelopt": write_modelopt,
}


@pytest.fixture(scope="module")
def states(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> list[States]:
    """What a tool may have stored of eight samples."""
    return states_of(project, make_cache(project, tmp_path_factory.mktemp("few"), **few(project)))


@pytest.fixture(scope="module")
def of_stage_one(project: TinyProject, states: list[States], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of stage 1 over the same tokens, one sample at a time, under the ids that speculators gives them."""
    folder = tmp_path_factory.mktemp("own")
    rows = [
        {"id": f"hs_{number}", "input_ids": sample.input_ids.tolist(), "loss_mask": sample.loss_mask.tolist()}
        for number, sample in enumerate(states)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = json.dumps([{"path": str(folder / "rows.jsonl"), "name": "tool", "format": "tokenized"}])
    settings = {"data.sources": sources, "precompute.batch_tokens": 1, **SETTINGS}
    return make_cache(project, folder / "caches", **settings)


SETTINGS = {"cache.profile": "compact", "cache.shard_bytes": "40KiB"}


BATCHES = {"train.batch_tokens": 256, "train.micro_batch_tokens": 256, "train.epochs": 3}


def recipe_of(project: TinyProject, tool: str, folder: Path, root: Path, **overrides: Any) -> Recipe:
    settings = [f"{name}={value}" for name, value in {"cache.root": root, **SETTINGS, **overrides}.items()]
    return load_recipe(project.recipe_file, import_overrides(tool, folder, settings))


def imported(project: TinyProject, tool: str, folder: Path, root: Path, **overrides: Any) -> Path:
    return Path(run_precompute(recipe_of(project, tool, folder, root, **overrides), report=quiet).folder)


@pytest.mark.parametrize("tool", WRITERS)
def test_states_of_any_tool_become_the_bytes_of_stage_one(
    project: TinyProject, states: list[States], of_stage_one: Path, tmp_path: Path, tool: str
) -> None:
    cache = imported(project, tool, WRITERS[tool](tmp_path / "tool", states), tmp_path / "caches")
    assert verify_cache(cache, full=True).ok
    assert contents(cache) == contents(of_stage_one)
    identity = load_document(cache / PLAN_NAME, Plan).identity_fields["data"]
    assert identity["imported"] == tool
    start, own = Cache.open(cache).start_tensors(), Cache.open(of_stage_one).start_tensors()
    assert start.keys() == own.keys() and all(torch.equal(start[name], own[name]) for name in own)


def test_an_imported_cache_trains_to_the_losses_of_stage_one(
    project: TinyProject,
    states: list[States],
    of_stage_one: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = imported(project, "speculators", write_speculators(tmp_path / "tool", states), tmp_path / "caches")
    monkeypatch.setattr(order, "_generator", lambda _: np.random.default_rng(0))  # an order of no identity
    losses = []
    for name, folder in (("imported", cache), ("own", of_stage_one)):
        run = tmp_path / name
        run_training(project.recipe(**{"train.output_dir": run, "train.max_steps": 3, **BATCHES}), [folder])
        rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]
        losses.append([row["loss"] for row in rows])
    assert len(losses[0]) == 3 and losses[0] == losses[1]


def contents(cache: Path) -> list[bytes]:
    """All that a cache stores of its samples but their ids, in their order."""
    kept = []
    for sample in samples(cache).values():
        columns = [vars(sample)[name] for name in sorted(vars(sample).keys() - {"sample_id", "source", "supervision"})]
        arrays = [*(column for column in columns if column is not None), *sample.supervision.values()]
        kept.append(b"".join(np.asarray(array).tobytes() for array in arrays if array is not None))
    return kept


def broken(folder: Path, number: int, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "hidden_states" / f"hs_{number}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_faulty_samples_are_dropped_by_name(project: TinyProject, states: list[States], tmp_path: Path) -> None:
    folder = write_speculators(tmp_path / "tool", states)
    files = folder / "hidden_states"
    os.truncate(files / "hs_0.safetensors", 4000)
    broken(folder, 1, lambda t: t["hidden_states"][5, 2].fill_(float("nan")))
    broken(folder, 2, lambda t: t["token_ids"].roll(1, 0).sub_(t["token_ids"]).clamp_(0, 1) + t["token_ids"].add_(1))
    broken(folder, 3, lambda t: t.update(hidden_states=t["hidden_states"][..., :16].clone()))
    broken(folder, 4, lambda t: t.pop("hidden_states"))
    (files / "hs_5.safetensors").unlink()
    cache = imported(project, "speculators", folder, tmp_path / "caches", **{"data.max_drop_fraction": 0.9})
    drops = [json.loads(line) for line in (cache / "drops.jsonl").read_text().splitlines()]
    found = {Path(drop["where"]).stem: drop["reason"] for drop in drops}
    assert found == {
        "hs_0": "unreadable_file",
        "hs_1": "not_finite",
        "hs_2": "other_tokens",
        "hs_3": "wrong_shape",
        "hs_4": "missing_field",
        "hs_5": "no_states",
    }
    assert "from token 5 on" in next(drop["detail"] for drop in drops if drop["reason"] == "not_finite")
    assert set(digests(cache)) == {"tool:hs_6", "tool:hs_7"}
    assert verify_cache(cache, full=True).ok
    with pytest.raises(DataError, match=r"5 of 8 rows .* data\.max_drop_fraction"):
        imported(project, "speculators", folder, tmp_path / "others")


def test_an_interrupted_import_resumes_to_the_same_bytes_without_reading_all_again(
    project: TinyProject,
    states: list[States],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_specforge(tmp_path / "tool", states)
    whole = imported(project, "specforge", folder, tmp_path / "whole")

    def stopped(_: ShardWriter) -> Sidecar:
        raise StoppedError("stopped")

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(ShardWriter, "finish", stopped)
        imported(project, "specforge", folder, tmp_path / "cut")
    (cache,) = (tmp_path / "cut").iterdir()
    assert not list((cache / "shards").glob("*.json")) and not (cache / "manifest.json").exists()
    capsys.readouterr()
    assert imported(project, "specforge", folder, tmp_path / "cut") == cache
    assert "read:" not in capsys.readouterr().err
    assert cache.name == whole.name and digests(cache) == digests(whole) and verify_cache(cache, full=True).ok


def test_a_sample_that_changes_after_it_was_staged_is_refused(
    project: TinyProject, states: list[States], tmp_path: Path
) -> None:
    folder = write_speculators(tmp_path / "tool", states)
    recipe = recipe_of(project, "speculators", folder, tmp_path / "caches")
    run_precompute(recipe, dry_run=True, report=quiet)
    path = folder / "hidden_states" / "hs_3.safetensors"
    before = path.stat()
    broken(folder, 3, lambda t: t["hidden_states"][0, 0, 0].add_(1.0))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CacheError, match=r"hs_3\.safetensors changed since the cache was begun"):
        run_precompute(recipe, report=quiet)


def test_a_damaged_imported_cache_is_repaired_from_its_folder(
    project: TinyProject, states: list[States], tmp_path: Path
) -> None:
    cache = imported(project, "modelopt", write_modelopt(tmp_path / "tool", states), tmp_path / "caches")
    shard = next((cache / "shards").glob("*.arrow"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-600] + bytes([data[-600] ^ 1]) + data[-599:])
    repair_cache(cache, recipe=None, overrides=(), report=quiet)
    assert shard.read_bytes() == data and verify_cache(cache, full=True).ok


def test_a_missing_loss_mask_is_named_and_may_be_left_out_on_purpose(
    project: TinyProject, states: list[States], tmp_path: Path
) -> None:
    folder = write_modelopt(tmp_path / "tool", states, mask=False)
    with pytest.raises(DataError, match=r"lacks loss_mask; set data\.mask=all"):
        imported(project, "modelopt", folder, tmp_path / "caches")
    cache = Cache.open(imported(project, "modelopt", folder, tmp_path / "caches", **{"data.mask": "all"}))
    samples = [cache.read(number) for number in range(cache.num_samples)]
    assert all(sample.supervised[:-1].all() for sample in samples)


def test_other_layers_than_the_recipe_asks_for_are_refused(
    project: TinyProject, states: list[States], tmp_path: Path
) -> None:
    folder = write_speculators(tmp_path / "tool", states)
    with pytest.raises(DataError, match=r"3 aux layers of width 32, and cache\.aux_layer_ids \[2, 4\]"):
        imported(project, "speculators", folder, tmp_path / "caches", **{"cache.aux_layer_ids": "[2, 4]"})


def test_folders_are_recognised(project: TinyProject, states: list[States], sealed_cache: Path, tmp_path: Path) -> None:
    folders = {tool: write(tmp_path / tool, states[:1]) for tool, write in WRITERS.items()}
    empty = tmp_path / "empty"
    empty.mkdir()
    attempt = partial(imported, project, root=tmp_path / "caches")
    with pytest.raises(DataError, match="looks like SpecForge's: `eaglepipe cache import specforge"):
        attempt("modelopt", folders["specforge"])
    with pytest.raises(DataError, match="looks like ModelOpt's"):
        attempt("speculators", folders["modelopt"])
    with pytest.raises(DataError, match="looks like speculators's"):
        attempt("specforge", folders["speculators"])
    with pytest.raises(DataError, match="the folder is empty"):
        attempt("specforge", empty)
    with pytest.raises(DataError, match="is a cache of eaglepipe already"):
        attempt("specforge", sealed_cache)
    with pytest.raises(DataError, match="does not exist"):
        attempt("specforge", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="did you mean 'speculators'"):
        attempt("speculator", empty)
    with pytest.raises(DataError, match=r"lacks the preprocessed dataset of speculators"):
        (folders["speculators"] / "dataset_info.json").unlink()
        attempt("speculators", folders["speculators"])
