"""What only real processes show: two ranks, and a real kill."""

import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from eaglepipe.train import train_from
from eaglepipe.training.run.metrics import read_metrics
from tests.processes import start
from tests.ranks import run_ranks
from tests.training.tiny_source import tiny_recipe, tiny_source


def run(folder: Path) -> None:
    train_from(tiny_recipe(folder), tiny_source())


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(folder)
    return folder


def test_two_ranks_follow_the_trajectory_of_one(tmp_path: Path, alone: Path) -> None:
    run_ranks(2, run, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-5)
    single = load_file(alone / "draft" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "draft" / "model.safetensors").items():
        assert tensor.flatten().tolist() == pytest.approx(single[name].flatten().tolist(), rel=1e-3, abs=1e-5)


def test_a_real_kill_loses_nothing_but_time(tmp_path: Path, alone: Path) -> None:
    process = start(run, tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    run(tmp_path)
    assert losses(tmp_path) == losses(alone)
    finals = [load_file(folder / "draft" / "model.safetensors") for folder in (tmp_path, alone)]
    assert all((finals[0][name] == tensor).all() for name, tensor in finals[1].items())
