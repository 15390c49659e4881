"""The record of a launch: a folder with what was started, the recipe as it was then, and everything its tasks print."""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from eaglepipe.errors import CorruptError
from eaglepipe.files.publish import explained_os_errors, publish_bytes, publish_json
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.recipe.load import dump_recipe
from eaglepipe.recipe.tree import Recipe

RECORD = "launch.json"
RECIPE = "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A stage that was started as `tasks` processes."""

    stage: str
    executor: str
    tasks: int
    command: tuple[str, ...]  # how eaglepipe is called where the tasks run
    arguments: tuple[str, ...] = ()  # of the stage, besides the recipe and the share of a task
    working_folder: str
    job: str | None = None  # the scheduler's name for it

    def task_command(self, folder: Path, task: str) -> list[str]:
        """Return the command of a task, whose number may be a variable of the shell."""
        share = ["--workers", f"{task}/{self.tasks}"] if self.stage == "precompute" else []
        return [*self.command, self.stage, str(folder / RECIPE), *self.arguments, *share]


def default_folder(recipe: Recipe) -> Path:
    """Return the folder of all launches of a recipe."""
    return Path("runs") / recipe.name / "launch"


def new_folder(parent: Path, stage: str) -> Path:
    """Make the folder of a launch: the stage's name with the next number."""
    with explained_os_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(path) for path in parent.glob("*-*") if path.is_dir()), default=0)
        while True:
            folder = parent.absolute() / f"{stage}-{number:04d}"
            try:
                folder.mkdir()
            except FileExistsError:  # by a launch at the same moment
                number += 1
                continue
            return folder


def _number(folder: Path) -> int:
    text = folder.name.rpartition("-")[2]
    return int(text) if text.isdecimal() else 0


def default_command() -> tuple[str, ...]:
    """Return how this very eaglepipe is called."""
    return (sys.executable, "-m", "eaglepipe")


def working_folder() -> str:
    """Return the folder that relative paths of the recipe start from."""
    return os.fspath(Path.cwd())


def record_launch(folder: Path, launch: Launch, recipe: Recipe) -> None:
    """Keep the launch and its recipe, so that a task that starts again finds what the first one had."""
    publish_bytes(folder / RECIPE, dump_recipe(recipe).encode())
    publish_json(folder / RECORD, asdict(launch))


def record_job(folder: Path, launch: Launch, job: str) -> Launch:
    """Add the scheduler's name for the launch to its record."""
    named = replace(launch, job=job)
    publish_json(folder / RECORD, asdict(named))
    return named


def read_launch(folder: Path) -> Launch:
    """Return the launch of a folder.

    Raises:
        CorruptError: its record is damaged.
    """
    path = folder / RECORD
    with explained_read_errors(path):
        data = path.read_bytes()
    try:
        values: Any = json.loads(data)
        return _LAUNCH.validate_python(values)
    except (ValueError, ValidationError):
        raise CorruptError(f"{path}: not the record of a launch; remove its folder") from None


def launches(parent: Path) -> list[Path]:
    """Return the folders of launches, the oldest first."""
    found = [path.parent for path in parent.absolute().glob(f"*/{RECORD}")] if parent.is_dir() else []
    return sorted(found, key=lambda folder: (_number(folder), folder.name))


def log_path(folder: Path, task: int | str) -> Path:
    """Return the file of everything that a task has printed, over all its attempts."""
    return folder / f"task-{task}.log"


def ending_path(folder: Path, task: int | str) -> Path:
    """Return the file that holds the exit code of a task's last attempt, once it has ended."""
    return folder / f"task-{task}.exit"


_LAUNCH = TypeAdapter(Launch)
