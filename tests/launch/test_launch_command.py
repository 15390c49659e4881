"""Mistakes in the request are one message each, before anything is planned or started."""

from pathlib import Path

import pytest

from eaglepipe.cli import app
from eaglepipe.errors import ConfigError
from tests.tiny_project import TinyProject

MISTAKES = {
    "--on slurn": "did you mean slurm",
    "--on kubernetes": "one of",
    "--on local --tasks 0": "at least 1 task",
    "--on local --tasks -3": "at least 1 task",
    "--on local --tasks 900": "tasks from 3 on would have nothing to do; use --tasks 3",
    "--on slurm": "no sbatch on PATH",
    "--on local --partition gpu": "--partition is an option of --on slurm",
    "--on ray --setup x": "--setup is an option of --on slurm",
    "--on local --address ray://head": "--address is an option of --on ray",
    "--on slurm --gpus two": "--gpus 'two'",
    "--on slurm --gpus 4": "a task uses one GPU",
    "--on local --gpus a100:1": "types are Slurm's",
    "--on slurm --mem lots": "--mem 'lots'",
    "--on slurm --sbatch array=0-3": "use --tasks",
    "--on slurm --sbatch =x": "expected KEY=VALUE",
    "--on local --then eval": "only train can follow",
    "--on local --command /no/such/program": "/no/such/program: cannot be started",
}


def launch(*arguments: object) -> None:
    app(["launch", *map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize("options", MISTAKES)
def test_a_mistake_is_one_message(
    options: str, project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    place = (f"cache.root={tmp_path}", "--logs", tmp_path / "logs")
    with pytest.raises(ConfigError) as caught:
        launch("precompute", project.recipe_file, *place, *options.split())
    assert MISTAKES[options] in str(caught.value)


def test_status_and_cancel_of_nothing(project: TinyProject, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was launched"):
        launch("status", project.recipe_file, "--logs", tmp_path)
    launch("cancel", project.recipe_file, "--logs", tmp_path)


def test_a_dry_run_leaves_nothing(project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for executor in ("slurm", "ray", "local"):
        launch(
            *("precompute", project.recipe_file, f"cache.root={tmp_path}", "--on", executor, "--tasks", 8),
            *("--then", "train", "--dry-run", "--logs", tmp_path / "logs"),
        )
        printed = capsys.readouterr().out
        assert "precompute" in printed and "train" in printed
    assert list(tmp_path.iterdir()) == []
