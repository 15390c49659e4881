"""The packages wandb and trackio as they are: offline they write files, and talk to nobody."""

import json
import os
import socket
import sqlite3
from pathlib import Path

import pytest

from eaglepipe.train import train_from
from eaglepipe.training.run.metrics import read_metrics
from tests.training.tiny_source import tiny_recipe, tiny_source


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody who is logged in."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "home" / "trackio"))
    return tmp_path / "home"


def run(folder: Path, steps: int, *names: str) -> None:
    train_from(tiny_recipe(folder, trackers=names, max_steps=steps), tiny_source())


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "step"]


def test_offline_runs_hold_every_loss_under_one_id_and_connect_to_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", server)
        monkeypatch.setenv("HF_ENDPOINT", server)
        monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("WANDB_MODE", "offline")
        for steps in (3, 6):  # the second one goes on
            run(folder, steps, "wandb", "trackio")
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert "warning" not in capfd.readouterr().err
    run_id = json.loads((folder / "trackers.json").read_text())["id"]
    files = sorted((folder / "wandb").rglob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2
    drawn = b"".join(path.read_bytes() for path in files)
    assert all(json.dumps(loss).encode() in drawn for loss in losses(folder))
    database = sqlite3.connect(home / "trackio" / "eaglepipe.db")
    rows = database.execute("SELECT run_id, step, metrics FROM metrics ORDER BY step").fetchall()
    assert {row[0] for row in rows} == {run_id}
    stored = {step: values["train/loss"] for _, step, text in rows if "train/loss" in (values := json.loads(text))}
    assert list(stored.values()) == pytest.approx(losses(folder))


def test_wandb_without_a_login_is_one_warning_and_asks_nobody(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", 2, "wandb")
    warned = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warned) == 1 and "wandb login" in warned[0] and "WANDB_MODE=offline" in warned[0]
    assert len(losses(tmp_path / "run")) == 2
