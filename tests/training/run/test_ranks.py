"""Two ranks: one killed, then both stopped, and the run that goes on as if neither had happened."""

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from eaglepipe.train import run_training
from eaglepipe.training.run.metrics import read_metrics
from tests.launch import forked
from tests.processes import Child, start_eaglepipe
from tests.ranks import rank_variables
from tests.tiny_project import TinyProject

EPOCHS = 3


def wait_until(reached: Callable[[], bool], child: Child) -> None:
    deadline = time.monotonic() + 90
    while not reached() and child.is_running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.is_running and reached(), child.wait().stderr


def start_ranks_with(python: Path) -> None:
    """Let `--gpus` start its ranks with this program."""
    sys.executable = str(python)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands for a fresh Python that runs eaglepipe, without the seconds that it needs to import torch."""
    program = tmp_path / "python"
    words = f'{sys.executable} -S {forked.__file__} "$@"'
    program.write_text(f'#!/bin/sh\ntest "$1 $2" = "-m eaglepipe" || exit 9\nshift 2\nexec {words}\n')
    program.chmod(0o755)
    server = forked.ForkingServer(tmp_path / "socket", lambda _: None)
    monkeypatch.setenv(forked.SOCKET, str(tmp_path / "socket"))
    yield program
    server.close()


def test_a_killed_rank_and_a_signal_end_both_ranks_and_the_run_goes_on(
    project: TinyProject, sealed_cache: Path, python: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {"cache.root": sealed_cache.parent, "train.epochs": EPOCHS, "train.early_stop_patience": "null"}
    overrides = [f"{key}={value}" for key, value in {**settings, "train.output_dir": run}.items()]
    command = ("train", project.recipe_file, *overrides)

    ranks = [start_eaglepipe(*command, **variables) for variables in rank_variables(2)]
    wait_until(lambda: bool(list(run.glob("checkpoints/step-*"))), ranks[0])
    ranks[1].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    left = ranks[0].wait()
    assert time.monotonic() - begun < 30
    assert left.returncode == 4 and "Traceback" not in left.stderr
    assert left.stderr.count(f"rank 1 (process {ranks[1].pid} on {socket.gethostname()}) has ended") == 1

    before = set(run.glob("checkpoints/step-*"))
    second = start_eaglepipe(*command, "--gpus", 2, before=partial(start_ranks_with, python))
    wait_until(lambda: set(run.glob("checkpoints/step-*")) > before, second)
    second.send_signal(signal.SIGTERM)
    done = second.wait()
    assert done.returncode == 75 and "with everything saved" in done.stderr and "Traceback" not in done.stderr

    run_training(project.recipe(**settings, **{"train.output_dir": run}), [sealed_cache])
    alone = tmp_path / "alone"
    run_training(project.recipe(**settings, **{"train.output_dir": alone}), [sealed_cache])
    losses, expected = ([row["loss"] for row in read_metrics(folder / "metrics.jsonl")] for folder in (run, alone))
    assert losses == pytest.approx(expected, rel=1e-5)
    single = load_file(alone / "draft" / "model.safetensors")
    for name, tensor in load_file(run / "draft" / "model.safetensors").items():
        assert tensor.flatten().tolist() == pytest.approx(single[name].flatten().tolist(), rel=1e-3, abs=1e-5)
