import json
import shutil
from pathlib import Path

import pytest
import torch

from eaglepipe.errors import CorruptError
from eaglepipe.files.tensors import publish_tensors
from eaglepipe.training.data.batch import DataPosition
from eaglepipe.training.run import checkpoint as checkpoint_module
from eaglepipe.training.run.checkpoint import (
    checkpoint_folders,
    load_checkpoint,
    load_latest,
    prune_checkpoints,
    save_checkpoint,
)
from eaglepipe.training.run.state import Evaluation, RunState


def evaluation(step: int) -> Evaluation:
    return Evaluation(
        step=step,
        samples=2,
        loss=0.1 + 0.2,
        accuracy_by_depth=(1 / 3, 0.0),
        acceptance_by_depth=(1 / 7, 0.0),
        conditional_acceptance_by_depth=(1 / 7, 0.0),
        simulated_acceptance_length=1 + 1 / 7,
    )


def save(root: Path, step: int, best: int | None = None) -> RunState:
    state = RunState(
        step=step,
        position=DataPosition(epoch=1, samples_done=step),
        first=evaluation(0),
        best=None if best is None else evaluation(best),
        train_seconds=1 / 3,
    )
    tensors = {"weight": torch.full((3,), float(step))}
    optimizer = {"step.weight": torch.tensor(float(step)), "exp_avg.weight": torch.ones(3)}
    save_checkpoint(root, state=state, contract={"cache": "abc"}, draft=tensors, optimizer=optimizer)
    return state


def fail(message: str) -> None:
    raise AssertionError(message)


def names(root: Path) -> list[str]:
    return [folder.name for folder in checkpoint_folders(root)]


def test_everything_comes_back_exactly(tmp_path: Path) -> None:
    state = save(tmp_path, 10, best=5)
    loaded = load_latest(tmp_path, fail)
    assert loaded is not None and loaded.state == state and loaded.contract == {"cache": "abc"}
    assert torch.equal(loaded.draft_tensors()["weight"], torch.full((3,), 10.0))
    assert torch.equal(loaded.optimizer_tensors()["step.weight"], torch.tensor(10.0))


def test_no_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none", fail) is None


@pytest.mark.parametrize("file", ["draft.safetensors", "optimizer.safetensors", "state.json", "COMPLETE"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    path = tmp_path / "step-0000020" / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 0x40
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-2])
    else:
        path.unlink()
    warnings: list[str] = []
    loaded = load_latest(tmp_path, warnings.append)
    assert loaded is not None and loaded.state.step == 10
    assert len(warnings) == 1 and "step-0000020" in warnings[0] and "step-0000010" in warnings[0]


def test_all_damaged_is_refused_and_names_each(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
        (tmp_path / f"step-{step:07d}" / "state.json").write_text("{}")
    with pytest.raises(CorruptError, match=r"(?s)step-0000020.*step-0000010") as caught:
        load_latest(tmp_path, fail)
    assert caught.value.exit_code == 3


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "VERSION", 2)
    save(tmp_path, 10)
    monkeypatch.undo()
    with pytest.raises(CorruptError, match="version 2"):
        load_checkpoint(tmp_path / "step-0000010")


@pytest.mark.parametrize("written", [0, 1, 2, 3, 4])
def test_killed_while_saving_the_previous_one_is_used(tmp_path: Path, written: int) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    whole = tmp_path / "step-0000020"
    torn = tmp_path / ".step-0000020.0123.tmp"
    torn.mkdir()
    for name in ["draft.safetensors", "optimizer.safetensors", "state.json", "COMPLETE"][:written]:
        shutil.copy(whole / name, torn / name)
    shutil.rmtree(whole)
    loaded = load_latest(tmp_path, fail)
    assert loaded is not None and loaded.state.step == 10
    prune_checkpoints(tmp_path, keep=1, step=10)
    assert not torn.exists()


def test_the_newest_and_their_best_are_kept(tmp_path: Path) -> None:
    for step, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 5)]:
        save(tmp_path, step, best)
    prune_checkpoints(tmp_path, keep=2, step=5)
    assert names(tmp_path) == ["step-0000002", "step-0000004", "step-0000005"]


def test_damaged_ones_neither_stop_pruning_nor_survive_when_their_step_comes_again(tmp_path: Path) -> None:
    for step in (1, 2, 9):
        save(tmp_path, step)
    for damaged in ("step-0000001", "step-0000009"):
        (tmp_path / damaged / "state.json").write_text("not JSON")
    save(tmp_path, 3)
    prune_checkpoints(tmp_path, keep=3, step=3)
    assert names(tmp_path) == ["step-0000001", "step-0000002", "step-0000003"]


def test_saving_a_step_again_replaces_it_even_when_damaged(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "step-0000010" / "COMPLETE").unlink()
    save(tmp_path, 10)
    assert load_checkpoint(tmp_path / "step-0000010").state.step == 10
    assert names(tmp_path) == ["step-0000010"]


def test_files_are_safetensors_and_json_alone(tmp_path: Path) -> None:
    save(tmp_path, 10)
    files = sorted(path.name for path in (tmp_path / "step-0000010").iterdir())
    assert files == ["COMPLETE", "draft.safetensors", "optimizer.safetensors", "state.json"]
    assert set(json.loads((tmp_path / "step-0000010" / "COMPLETE").read_text())) == set(files) - {"COMPLETE"}


def test_saved_tensors_may_be_read_by_whom_the_other_files_may(tmp_path: Path) -> None:
    publish_tensors(tmp_path / "draft.safetensors", {"weight": torch.ones(2)})
    (tmp_path / "other").touch()
    assert (tmp_path / "draft.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
