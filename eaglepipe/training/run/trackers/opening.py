"""The trackers that a recipe names."""

import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from eaglepipe.errors import ConfigError, EaglepipeError
from eaglepipe.files.publish import publish_json
from eaglepipe.recipe.tree import Recipe
from eaglepipe.training.run.trackers.guarded import GuardedTracker
from eaglepipe.training.run.trackers.process import TrackerProcess
from eaglepipe.training.run.trackers.tensorboard_file import TensorBoardFile
from eaglepipe.training.run.trackers.values import Drawing

_PLACES = {"draft": {"init"}, "train": {"output_dir", "caches", "trackers"}}  # of this machine alone
IDS = "trackers.json"
"""The file of a run folder with the id that each tracker knows the run by."""


def require_trackers(names: tuple[str, ...]) -> None:
    """Check before any work is done that the packages of trackers are installed.

    Raises:
        ConfigError: one is absent.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            extra = "trackers" if name == "tensorboard" else name
            raise ConfigError(f"train.trackers: {name} needs the {name} package: pip install 'eaglepipe[{extra}]'")


def open_trackers(recipe: Recipe, folder: Path, *, last_step: int, say: Callable[[str], None]) -> list[GuardedTracker]:
    """Open the trackers of a run that has taken `last_step` steps; whatever fails from here on is a warning."""
    names = recipe.train.trackers
    if not names:
        return []
    run_id = _run_id(folder, is_new=last_step == 0)
    config = recipe.model_dump(mode="json", include={"draft", "train"}, exclude=_PLACES)
    opened: Mapping[str, Callable[[], Drawing]] = {
        "tensorboard": lambda: TensorBoardFile(folder / "tensorboard", last_step=last_step),
        **{
            name: partial(TrackerProcess, name, folder, run_id=run_id, name=recipe.name, config=config)
            for name in ("wandb", "trackio")
        },
    }
    return [GuardedTracker(name, opened[name], say) for name in names]


def _run_id(folder: Path, *, is_new: bool) -> str:
    """Return the id that a resumed run has in its folder; a run from step 0 gets another one."""
    path = folder / IDS
    if not is_new:
        with suppress(OSError, ValueError):  # absent or damaged: the tracker begins another run, and training goes on
            known: Any = json.loads(path.read_bytes())
            if isinstance(known, dict) and isinstance(known.get("id"), str) and known["id"].isalnum():
                return str(known["id"])
    run_id = secrets.token_hex(6)
    with suppress(EaglepipeError):  # a full disk is for the run to report
        publish_json(path, {"id": run_id})
    return run_id
