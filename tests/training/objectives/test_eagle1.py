"""EAGLE-1/2 offline: whole runs from a cache that keeps every token's last hidden state and the whole head."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.eagle.draft_llama_v12 import LlamaEagleDraftModel
from eaglepipe.errors import CacheError, ConfigError, StoppedError
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.family_settings import Eagle1TrainConfig
from eaglepipe.train import preview_training, run_training, train_from
from eaglepipe.training.data.batch import DataPosition, StepPlan
from eaglepipe.training.data.collate import pack_documents
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.source import open_caches
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.objectives.eagle1 import Eagle1Objective
from eaglepipe.training.objectives.interface import make_objective
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.metrics import MetricsFile, StepRecord, read_metrics
from eaglepipe.training.run.ranks.distributed import World
from tests.tiny_project import TinyProject
from tests.training.tiny_source import TinySource, tiny_recipe, tiny_source

CPU = torch.device("cpu")


def run(folder: Path, source: TinySource | None = None, **train: Any) -> list[dict[str, Any]]:
    settings = {"objective": "eagle1", "max_steps": 6, **train}
    train_from(tiny_recipe(folder, **settings), source or tiny_source(for_eagle1=True))
    return rows(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    names = ("step", "loss", "grad_norm", "acceptance_by_depth")
    return [{key: row[key] for key in names if key in row} for row in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    run(folder)
    return folder


@pytest.mark.parametrize("step", [1, 4])
def test_stopped_and_run_again_the_tail_is_identical_noise_included(
    step: int, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MetricsFile.add_step

    def add(self: MetricsFile, record: StepRecord) -> None:
        original(self, record)
        if record.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "add_step", add)
    with pytest.raises(StoppedError):
        run(tmp_path)
    monkeypatch.undo()
    assert run(tmp_path) == rows(reference)
    drafts = [load_file(folder / "draft" / "model.safetensors") for folder in (tmp_path, reference)]
    assert all(torch.equal(drafts[0][name], tensor) for name, tensor in drafts[1].items())


def test_how_a_step_is_cut_changes_neither_noise_nor_loss(tmp_path: Path, reference: Path) -> None:
    other = run(tmp_path / "other", micro_batch_tokens=16)
    for mine, whole in zip(other, rows(reference), strict=True):
        assert mine["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    quiet = run(tmp_path / "quiet", feature_noise=0.0)
    assert quiet[1]["loss"] != other[1]["loss"]


def test_noise_differs_between_epochs_samples_and_seeds_and_is_none_in_evaluation() -> None:
    source = tiny_source(for_eagle1=True)
    packed = pack_documents(((source.read(0), source.read(1)), (source.read(2),)))

    def seeds(seed: int, epoch: int) -> torch.Tensor:
        return Eagle1Objective(Eagle1TrainConfig(seed=seed)).draw(packed, epoch, training=True).extras["noise_seeds"]

    first = seeds(0, 0)
    assert torch.equal(seeds(0, 0), first)
    assert len({tuple(seeds(*of).flatten().tolist()) for of in ((0, 0), (0, 1), (1, 0))}) == 3
    real = packed.batch.attention_mask
    assert first[real].unique().numel() == int(real.sum()) and 0 <= int(first.min()) <= int(first.max()) < 2**32
    assert Eagle1Objective(Eagle1TrainConfig()).draw(packed, 0, training=False).extras == {}


def test_a_batch_carries_features_and_neither_aux_states_nor_supervision(tmp_path: Path) -> None:
    source = tiny_source(for_eagle1=True)
    recipe = tiny_recipe(tmp_path, objective="eagle1")
    objective = make_objective(recipe.train)
    learner = Learner(source, build_draft(source, recipe.train, recipe.draft), recipe.train, World(device=CPU))
    plan = StepPlan(samples=np.arange(2), micro_batches=(((0,), (1,)),), after=DataPosition())

    def draw(packed: Any, epoch: int) -> Any:
        return objective.draw(packed, epoch, training=False)

    with Loader(source, [plan], draw=draw, columns=objective.columns, device=CPU, prefetch_batches=1) as loader:
        ((header, batches),) = ((header, list(batches)) for header, batches in loader)
    (batch,) = batches
    assert batch.aux_payload.shape[0] == 0 and all(len(column) == 0 for column in batch.supervision.values())
    features = learner._arguments(batch)["target_hidden_states"]
    for row in range(2):
        payload = source.read(row).last_hidden_payload
        assert payload is not None
        expected = torch.from_numpy(payload.copy()).view(torch.float32)
        assert torch.equal(features[row, : len(expected)], expected) and not features[row, len(expected) :].any()
    counters = learner.measure(batch)
    assert counters.counts.tolist() == header.counts.tolist() and header.counts[2] > 0


def test_eagle2_trains_what_eagle1_trains(tmp_path: Path, reference: Path) -> None:
    assert run(tmp_path, objective="eagle2") == rows(reference)


def test_the_draft_learns(tmp_path: Path) -> None:
    result = train_from(tiny_recipe(tmp_path, objective="eagle1", epochs=6), tiny_source(for_eagle1=True))
    assert result.heldout_loss_end is not None and result.heldout_loss_start is not None
    assert result.heldout_loss_end < 0.9 * result.heldout_loss_start
    assert result.simulated_acceptance_length_end > result.simulated_acceptance_length_start  # type: ignore[operator]
    assert result.accuracy_by_depth is not None and len(result.accuracy_by_depth) == 3


@pytest.mark.parametrize(
    "source",
    [tiny_source(), tiny_source(supervision="dense"), tiny_source(supervision="sparse")],
    ids=lambda s: s.spec.supervision,
)
def test_a_cache_without_features_or_head_is_refused_before_any_step(source: TinySource, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"cache\.last_hidden=all .*cache\.full_head=true"):
        run(tmp_path, source)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_draft_of_another_width_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, objective="eagle1")
    narrow = recipe.model_copy(update={"draft": recipe.draft.model_copy(update={"hidden_size": 8})})
    with pytest.raises(ConfigError, match=r"remove draft\.hidden_size"):
        train_from(narrow, tiny_source(for_eagle1=True))


def test_two_steps_from_a_real_cache_leave_a_draft_that_loads(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    overrides = {"cache.root": str(tmp_path), "cache.last_hidden": "all", "cache.full_head": "true"}
    cache = Path(run_precompute(project.recipe(**overrides), report=lambda _: None).folder)
    settings = {"train.objective": "eagle1", "train.max_steps": 2, "train.output_dir": str(tmp_path / "run")}
    settings |= {"target.path": "gone", "train.caches": f"[{cache}]"}
    recipe = project.recipe(**settings)
    result = run_training(recipe, [cache])
    assert result.steps == 2 and result.heldout_loss_end is not None
    assert (tmp_path / "run" / "checkpoints" / "step-0000002" / "COMPLETE").exists()
    draft = LlamaEagleDraftModel.from_pretrained(tmp_path / "run" / "draft")
    saved = load_file(tmp_path / "run" / "draft" / "model.safetensors")
    assert set(saved) == set(draft.state_dict())
    assert all(torch.equal(draft.state_dict()[name], tensor) for name, tensor in saved.items())
    embeddings = open_caches([cache]).start_tensors()["embed_tokens.weight"]
    assert torch.equal(saved["embed_tokens.weight"], embeddings.float())
    again = project.recipe(**{**settings, "draft.init": str(tmp_path / "run" / "draft")})
    assert "initialised from its" in " ".join(preview_training(again, [cache]).notes)
    with pytest.raises(
        CacheError, match=r"lacks what EAGLE-1 learns from; .*\.last_hidden=all and cache\.full_head=true"
    ):
        run_training(project.recipe(**{**settings, "train.output_dir": str(tmp_path / "other")}), [sealed_cache])
