"""Weights & Biases: a run with the recipe's `draft` and `train` sections, and nothing else of this machine.

$WANDB_MODE, $WANDB_PROJECT, $WANDB_ENTITY, $WANDB_BASE_URL and the rest are wandb's own; offline, it writes into the
run folder only.
"""

import os
from pathlib import Path
from typing import Any

from eaglepipe.errors import ConfigError

PROJECT = "eaglepipe"
_START_SECONDS = 60.0
_FINISH_SECONDS = 20.0


class WandbRun:
    """A run of wandb, which goes on with the id it had; steps that it has already are ignored by it."""

    def __init__(self, folder: Path, *, run_id: str, name: str, config: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            init_timeout=_START_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        mode = os.environ.get("WANDB_MODE", "online")
        if mode not in ("offline", "disabled", "dryrun") and not wandb.login(prompt=False):
            raise ConfigError("not logged in; run `wandb login`, or set WANDB_MODE=offline")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run_id,
            resume=None if mode in ("offline", "dryrun") else "allow",
            name=os.environ.get("WANDB_NAME") or name,
            dir=str(folder),
            config=config,
            settings=settings,
        )

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
