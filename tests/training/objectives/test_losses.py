"""What `train.loss` and `train.eval_depth` ask of a run."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eaglepipe.errors import CacheError, StoppedError
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.train import train_from
from eaglepipe.training.data.collate import pack_documents
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.objectives.eagle3 import Eagle3Objective
from eaglepipe.training.objectives.mean_alphas import MeanAlphas
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.metrics import MetricsFile, read_metrics
from eaglepipe.training.run.ranks.distributed import World
from tests.training.tiny_source import tiny_recipe, tiny_source

CPU = World(device=torch.device("cpu"))


def logged(folder: Path, name: str, kind: str = "step") -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == kind]


@pytest.mark.parametrize(("loss", "supervision"), [("lambda", "hidden"), ("lambda", "sparse"), ("alpha", "sparse")])
def test_cutting_the_work_otherwise_changes_no_lk_loss(loss: str, supervision: str, tmp_path: Path) -> None:
    for name, cut in (("whole", {"micro_batch_tokens": 48}), ("parts", {"micro_batch_tokens": 16, "pack_length": 16})):
        recipe = tiny_recipe(tmp_path / name, loss=loss, max_steps=4, **cut)
        train_from(recipe, tiny_source(supervision=supervision))
    assert logged(tmp_path / "parts", "loss") == pytest.approx(logged(tmp_path / "whole", "loss"), rel=1e-4)


def test_stopped_lambda_run_goes_on_with_the_weights_it_would_have_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_from(tiny_recipe(tmp_path / "whole", loss="lambda"), tiny_source())
    original = MetricsFile.add_step

    def stop(self: MetricsFile, record: Any) -> None:
        original(self, record)
        if record.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsFile, "add_step", stop)
    with pytest.raises(StoppedError):
        train_from(tiny_recipe(tmp_path / "stopped", loss="lambda"), tiny_source())
    monkeypatch.undo()
    train_from(tiny_recipe(tmp_path / "stopped", loss="lambda"), tiny_source())
    assert logged(tmp_path / "stopped", "loss") == logged(tmp_path / "whole", "loss")


def test_first_lambda_step_is_cross_entropy_and_the_second_is_not(tmp_path: Path) -> None:
    for loss in ("ce", "lambda"):
        train_from(tiny_recipe(tmp_path / loss, loss=loss, max_steps=2), tiny_source())
    ce, mixed = (logged(tmp_path / loss, "loss") for loss in ("ce", "lambda"))
    assert mixed[0] == pytest.approx(ce[0], rel=1e-6) and mixed[1] < 0.99 * ce[1]


def test_mass_travels_for_the_slots_that_count_and_only_when_it_is_asked_for(tmp_path: Path) -> None:
    source = tiny_source()
    packed = pack_documents(((source.read(0), source.read(1)), (source.read(2),)))
    expected = [
        float(mass)
        for document in (source.read(0), source.read(1), source.read(2))
        for mass, counts in zip(document.draft_mass[1:], document.position_mask[1:], strict=True)
        if counts
    ]
    drawn = Eagle3Objective(tiny_recipe(tmp_path, loss="alpha").train).draw(packed, 0, training=True)
    assert drawn.extras["draft_mass"].tolist() == expected and 0.0 < min(expected) <= max(expected) < 1.0
    assert not Eagle3Objective(tiny_recipe(tmp_path).train).draw(packed, 0, training=True).extras
    nothing = Eagle3Objective(tiny_recipe(tmp_path, loss="alpha").train).draw(pack_documents(()), 0, training=True)
    assert nothing.extras["draft_mass"].shape == (0,)


def test_mean_alphas_are_those_of_the_last_step_and_survive_a_checkpoint() -> None:
    means = MeanAlphas(2, CPU)
    assert means.arguments()["mean_alphas"].tolist() == [0.0, 0.0]
    means.add(torch.tensor([3.0, 1.0]))
    means.add(torch.tensor([1.0, 0.0]))
    means.close(torch.tensor([8, 4]))
    assert means.arguments()["mean_alphas"].tolist() == [0.5, 0.25]
    means.add(torch.tensor([2.0, 0.0]))
    means.close(torch.tensor([2, 0]))
    again = MeanAlphas(2, CPU)
    again.restore(means.tensors())
    assert again.arguments()["mean_alphas"].tolist() == [1.0, 0.25]


@pytest.mark.parametrize("settings", [{"ttt_steps": 1, "eval_depth": 3}, {"loss": "lambda"}, {"loss": "alpha"}])
def test_evaluations_are_those_of_a_plain_run_of_that_depth(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = train_from(tiny_recipe(tmp_path / "plain", max_steps=1), tiny_source())
    other = train_from(tiny_recipe(tmp_path / "other", max_steps=1, **settings), tiny_source())
    assert other.accuracy_by_depth_start == plain.accuracy_by_depth_start
    assert other.heldout_loss_start == pytest.approx(plain.heldout_loss_start)
    assert len(other.conditional_acceptance_by_depth or ()) == 3


def test_a_plain_run_is_evaluated_by_the_module_that_it_trains(tmp_path: Path) -> None:
    config = tiny_recipe(tmp_path).train
    draft = build_draft(tiny_source(), config, tiny_recipe(tmp_path).draft)
    learner = Learner(tiny_source(), draft, config, CPU)
    assert learner._measured is learner.module
    assert np.isclose(sum(learner.evaluation.loss_weights), 1.0)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loss": "lambda"}, "train.loss=lambda measures acceptance"),
        ({"objective": "peagle"}, "train.objective=peagle measures a KL"),
        ({"objective": "dflash", "loss": {"ce": 0.1, "tv": 0.9}}, "train.loss has tv"),
        ({"objective": "dspark", "loss": "ce"}, "train.confidence_weight trains a forecast"),
    ],
)
def test_drawn_supervision_is_refused_where_its_mean_does_not_do(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    whole = tiny_recipe(tmp_path).model_dump(mode="json", include={"name", "target", "data"})
    recipe = parse_recipe({**whole, "train": {"output_dir": str(tmp_path), **settings}})
    with pytest.raises(CacheError, match=reason):
        build_draft(tiny_source(supervision="sampled"), recipe.train, recipe.draft)
