import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eaglepipe.cache.types import CachedSample
from eaglepipe.devices import resolve_device
from eaglepipe.errors import CacheError, ConfigError, CorruptError, DraftError, StoppedError
from eaglepipe.train import train_from
from eaglepipe.training.run.metrics import MetricsFile, StepRecord, read_metrics
from eaglepipe.training.run.run_plan import check_contract, resume_contract
from eaglepipe.training.run.state import Evaluation
from tests.training.tiny_source import DRAFT_VOCAB, HIDDEN, VOCAB, TinySource, tiny_recipe, tiny_source

EXACT = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "simulated_acceptance_length")


def rows(folder: Path) -> list[dict[str, Any]]:
    """What must be the same however a run was interrupted: everything but the clock."""
    return [{key: row[key] for key in EXACT if key in row} for row in read_metrics(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "draft" / "model.safetensors")


def assert_same_run(folder: Path, reference: Path) -> None:
    assert rows(folder) == rows(reference)
    for name, tensor in weights(reference).items():
        assert torch.equal(tensor, weights(folder)[name]), name
    last = sorted((reference / "checkpoints").iterdir())[-1].name
    for name in ("draft.safetensors", "optimizer.safetensors"):
        paths = [run / "checkpoints" / last / name for run in (folder, reference)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("reference")
    assert train_from(tiny_recipe(folder), tiny_source()).steps == 12
    return folder


class Killed(BaseException):
    """Ends the process's Python at once, with nothing saved."""


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Do something right after the row of a step was written; step 0 is the first evaluation's."""

    def install(step: int, action: Any) -> None:
        name = "add_step" if step else "add_evaluation"
        original = getattr(MetricsFile, name)

        def add(self: MetricsFile, record: StepRecord | Evaluation) -> None:
            original(self, record)
            if record.step == step:
                action()

        monkeypatch.setattr(MetricsFile, name, add)

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize("step", range(11))
def test_stopped_by_sigterm_at_any_step_the_whole_tail_is_identical(
    step: int, at_step: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: Path
) -> None:
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match=f"SIGTERM after step {step + 1} ") as caught:
        train_from(tiny_recipe(tmp_path), tiny_source())
    assert caught.value.exit_code == 75
    monkeypatch.undo()
    train_from(tiny_recipe(tmp_path), tiny_source())
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize("step", [1, 3, 4, 7, 11])
def test_killed_at_any_step_the_whole_tail_is_identical(
    step: int, at_step: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: Path
) -> None:
    def kill() -> None:
        raise Killed

    at_step(step, kill)
    with pytest.raises(Killed):
        train_from(tiny_recipe(tmp_path), tiny_source())
    monkeypatch.undo()
    train_from(tiny_recipe(tmp_path), tiny_source())
    assert_same_run(tmp_path, reference)


def test_damaged_newest_checkpoint_costs_steps_but_not_exactness(
    at_step: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        train_from(tiny_recipe(tmp_path), tiny_source())
    monkeypatch.undo()
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    (newest / "optimizer.safetensors").write_bytes(b"\0" * 100)
    train_from(tiny_recipe(tmp_path), tiny_source())
    assert f"{newest.name}/optimizer.safetensors: missing, or not the bytes" in capsys.readouterr().err
    assert_same_run(tmp_path, reference)


def test_running_a_finished_run_again_changes_nothing(tmp_path: Path) -> None:
    first = train_from(tiny_recipe(tmp_path), tiny_source())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train_from(tiny_recipe(tmp_path), tiny_source()) == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_cutting_the_work_otherwise_changes_neither_order_nor_loss(tmp_path: Path, reference: Path) -> None:
    train_from(tiny_recipe(tmp_path, micro_batch_tokens=16, pack_length=16, prefetch_batches=1), tiny_source())
    for mine, theirs in zip(rows(tmp_path), rows(reference), strict=True):
        assert mine.get("tokens") == theirs.get("tokens")
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path, reference: Path) -> None:
    train_from(tiny_recipe(tmp_path, gradient_checkpointing=True), tiny_source())
    assert [row["loss"] for row in rows(tmp_path)] == pytest.approx([row["loss"] for row in rows(reference)], rel=1e-5)


def test_losses_are_logged_at_every_step_whatever_the_interval(tmp_path: Path, reference: Path) -> None:
    train_from(tiny_recipe(tmp_path, log_every_steps=5), tiny_source())
    assert rows(tmp_path) == rows(reference)


def test_the_published_draft_is_that_of_the_best_evaluation(tmp_path: Path) -> None:
    result = train_from(tiny_recipe(tmp_path), tiny_source())
    evaluations = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "evaluation"]
    best = max(evaluations[1:], key=lambda row: (row["simulated_acceptance_length"], -row["loss"]))
    assert result.best_step == best["step"] and result.heldout_loss_end == best["loss"]
    saved = load_file(tmp_path / "checkpoints" / f"step-{best['step']:07d}" / "draft.safetensors")
    published = weights(tmp_path)
    assert all(torch.equal(published[name], tensor) for name, tensor in saved.items())
    assert torch.equal(published["model.embed_tokens.weight"], tiny_source().tensors["embed_tokens.weight"])
    assert published["lm_head.weight"].shape == (DRAFT_VOCAB, HIDDEN) and published["t2d"].shape == (VOCAB,)
    config = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert config["architectures"] == ["LlamaEagle3DraftModel"] and config["draft_vocab_size"] == DRAFT_VOCAB
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5] and config["eagle_aux_layers_are_default"] is True
    assert config["target_num_hidden_layers"] == 8
    assert json.loads((tmp_path / "train.json").read_text())["best_step"] == result.best_step


def test_held_out_loss_falls_and_acceptance_rises(tmp_path: Path) -> None:
    settings = {"epochs": 4, "batch_tokens": 256, "micro_batch_tokens": 256}
    result = train_from(tiny_recipe(tmp_path, **settings, eval_every_steps=20), tiny_source(200))
    start, end = result.heldout_loss_start, result.heldout_loss_end
    assert start is not None and end is not None and end < 0.5 * start
    lengths = (result.simulated_acceptance_length_start, result.simulated_acceptance_length_end)
    assert lengths[0] is not None and lengths[1] is not None and lengths[1] > lengths[0] + 0.3


def test_entries_are_learned_from_like_the_whole_distribution(tmp_path: Path) -> None:
    larger = {"batch_tokens": 96, "micro_batch_tokens": 96}
    settings = {"epochs": 4, "eval_every_steps": 20, "learning_rate": 2e-2, **larger}
    dense, *others = (
        train_from(tiny_recipe(tmp_path / kind, **settings), tiny_source(60, supervision=kind))
        for kind in ("dense", "sparse", "sampled")
    )
    for result in others:
        # the target's greedy tokens are the same, so the untrained draft accepts the same
        assert result.simulated_acceptance_length_start == dense.simulated_acceptance_length_start
        assert result.simulated_acceptance_length_end == pytest.approx(dense.simulated_acceptance_length_end, abs=0.2)
        assert result.simulated_acceptance_length_end > result.simulated_acceptance_length_start + 0.2


def test_no_gain_for_the_patience_ends_the_run_early(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, learning_rate=1e-30, eval_every_steps=1, early_stop_patience=3)
    result = train_from(recipe, tiny_source())
    assert result.stopped_early and result.steps == 4 and result.best_step == 1
    assert train_from(recipe, tiny_source()) == result


def test_nothing_held_out_publishes_the_last_step(tmp_path: Path) -> None:
    result = train_from(tiny_recipe(tmp_path, heldout_fraction=0.0, max_steps=3), tiny_source())
    assert result.best_step == result.steps == 3 and result.heldout_loss_end is None
    assert (tmp_path / "draft" / "model.safetensors").exists()


def test_samples_without_any_supervision_give_zero_gradients(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path), tiny_source(supervised=False))
    steps = [row for row in rows(tmp_path) if "grad_norm" in row]
    assert all(row["loss"] == 0.0 and row["grad_norm"] == 0.0 for row in steps)


class Poisoned(TinySource):
    """One sample's aux states are NaN."""

    def read(self, i: int, /) -> CachedSample:
        sample = super().read(i)
        nan = np.full(sample.aux_payload.size // 4, np.nan, np.float32).view(np.uint8).reshape(sample.aux_payload.shape)
        return replace(sample, aux_payload=nan) if i == 7 else sample


def test_a_loss_that_is_no_number_stops_before_it_is_saved(tmp_path: Path) -> None:
    source = tiny_source()
    poisoned = Poisoned(**{name: getattr(source, name) for name in source.__dataclass_fields__})
    recipe = tiny_recipe(tmp_path, heldout_fraction=0.0, log_every_steps=50, checkpoint_every_steps=1)
    with pytest.raises(DraftError, match=r"loss is nan at step \d+"):
        train_from(recipe, poisoned)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint / "draft.safetensors").values())


def test_another_cache_cannot_continue_a_run(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path, max_steps=2), tiny_source())
    with pytest.raises(CacheError, match="tiny, this is other"):
        train_from(tiny_recipe(tmp_path), tiny_source(identity="other"))


def test_changed_settings_that_decide_what_is_learned_are_named(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path, max_steps=2), tiny_source())
    with pytest.raises(ConfigError, match=r"(?s)train\.batch_tokens: 48 -> 64.*train\.ttt_steps: 3 -> 2"):
        train_from(tiny_recipe(tmp_path, ttt_steps=2, batch_tokens=64), tiny_source())


def test_all_checkpoints_damaged_is_an_error_not_a_silent_restart(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path, max_steps=2), tiny_source())
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        (checkpoint / "COMPLETE").unlink()
    with pytest.raises(CorruptError):
        train_from(tiny_recipe(tmp_path), tiny_source())


def test_rows_that_cannot_hold_the_longest_sample_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.pack_length is 8, but the longest sample has 16 tokens"):
        train_from(tiny_recipe(tmp_path, pack_length=8), tiny_source())
    with pytest.raises(ConfigError, match=r"train\.pack_length is 40, more than train\.micro_batch_tokens \(32\)"):
        train_from(tiny_recipe(tmp_path, pack_length=40), tiny_source())


def test_cuda_device_that_is_not_there_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"torch sees \d+ CUDA device\(s\) here"):
        train_from(tiny_recipe(tmp_path, device=f"cuda:{torch.cuda.device_count()}"), tiny_source())


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", ""])
def test_device_of_no_known_kind_is_a_plain_error(device: str) -> None:
    with pytest.raises(ConfigError, match="not one of auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def test_bfloat16_compute_keeps_float32_masters(tmp_path: Path) -> None:
    train_from(tiny_recipe(tmp_path, dtype="bfloat16", max_steps=2), tiny_source())
    draft = load_file(tmp_path / "checkpoints" / "step-0000002" / "draft.safetensors")
    assert {tensor.dtype for tensor in draft.values()} == {torch.float32}


def test_a_run_from_before_a_setting_existed_had_its_default(tmp_path: Path) -> None:
    older = resume_contract(tiny_recipe(tmp_path), tiny_source())
    del older["train"]["step_decay"], older["draft"]["fc_norm"]
    check_contract(older, resume_contract(tiny_recipe(tmp_path), tiny_source()), "run")
    with pytest.raises(ConfigError, match=r"train\.step_decay: 0\.8 -> 0\.5"):
        check_contract(older, resume_contract(tiny_recipe(tmp_path, step_decay=0.5), tiny_source()), "run")


def test_a_run_from_before_families_had_settings_of_their_own_goes_on(tmp_path: Path) -> None:
    current = resume_contract(tiny_recipe(tmp_path), tiny_source())
    foreign = {"train": {"feature_noise": 0.1, "peagle_depths": 8}, "draft": {"mask_token_id": None}}
    older = {**current, **{name: {**current[name], **settings} for name, settings in foreign.items()}}
    check_contract(older, current, "run")
