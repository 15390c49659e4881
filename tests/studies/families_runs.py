"""The runs of `study families`: commands of this package in processes of their own, read back if they are finished."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eaglepipe.errors import EaglepipeError
from eaglepipe.files.publish import publish_json
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from tests.studies.families_base import DEPTH
from tests.studies.families_report import FamilyRun

OTHERS_WAIT_S = 5.0
_MOST_EPOCHS = 10_000
Report = Callable[[str], None]


def whole_cache(base: Path, report: Report) -> dict[str, Any]:
    """Return the report of stage 1 once every shard is there, those that another process had begun included."""
    while not (cache := run_command("precompute", [str(base)]))["complete"]:
        report(f"the rest is another process's; looking again in {OTHERS_WAIT_S:.0f} s")
        time.sleep(OTHERS_WAIT_S)
    return cache


def run_settings(steps: int, cache: Path) -> tuple[str, ...]:
    """Return as many epochs as the steps take, one evaluation at the end, and checkpoints to go on from."""
    return (
        f"train.caches=[{cache}]",
        f"train.epochs={min(steps, _MOST_EPOCHS)}",
        f"train.max_steps={steps}",
        f"train.eval_every_steps={steps}",
        f"train.checkpoint_every_steps={max(1, steps // 4)}",
    )


def measure_run(
    base: Path, settings: Sequence[str], folder: Path, *, seed: int, replayed: int, report: Report
) -> FamilyRun:
    overrides = [*settings, f"train.output_dir={folder.as_posix()}"]
    result = finished(folder, load_recipe(base, overrides))
    if result is None:
        result = run_command("train", [str(base), *overrides])
    else:
        report(f"{folder}: already trained")
    return FamilyRun(
        seed=seed,
        acceptance_length=result["simulated_acceptance_length_end"],
        round_length=_round_length(folder, replayed) if replayed else None,
        accuracy_by_depth=tuple(result["accuracy_by_depth"]),
        conditional_acceptance_by_depth=tuple(result["conditional_acceptance_by_depth"]),
        heldout_samples=result["heldout_samples"],
        seconds=result["seconds"],
    )


def _round_length(folder: Path, answers: int) -> float:
    """Return the tokens that a round adds in replayed answers, read back if that draft was replayed before."""
    file, draft = folder / f"rounds-{answers}.json", folder / "draft" / "model.safetensors"
    if not file.exists() or file.stat().st_mtime < draft.stat().st_mtime:
        words = [str(folder), "--k", str(DEPTH), "--num-prompts", str(answers)]
        figures = run_command("eval", words)["figures"]
        # The baselines come before the draft, whose chain is the only other one at this depth.
        publish_json(file, {"length": figures[-1]["acceptance_length"]})
    length: float = json.loads(file.read_text(encoding="utf-8"))["length"]
    return length


def finished(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Return the result of a run of this very recipe, if it came to its end."""
    result, trained = folder / "train.json", folder / "recipe.yaml"
    if not result.exists() or not trained.exists() or _as_given(load_recipe(trained), recipe) != recipe:
        return None
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found if found["steps"] == recipe.train.max_steps else None


def _as_given(trained: Recipe, recipe: Recipe) -> Recipe:
    """Return a run's recipe without the mask token that training chose, if none was given."""
    if getattr(recipe.draft, "mask_token_id", 0) is not None or not hasattr(trained.draft, "mask_token_id"):
        return trained
    return trained.model_copy(update={"draft": trained.draft.model_copy(update={"mask_token_id": None})})


def run_command(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command of this package in a process of its own; its messages pass through, its result comes back."""
    code, output = run_process([command, *arguments, "--json"])
    if code:
        error = EaglepipeError(f"`eaglepipe {command}` ended with exit code {code}; see above")
        error.exit_code = abs(code)
        raise error
    result: dict[str, Any] = json.loads(output)
    return result


def run_process(arguments: Sequence[str]) -> tuple[int, str]:
    """Run this package in a fresh process to its end; return its exit code and what it printed."""
    words = [sys.executable, "-m", "eaglepipe", *arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            output = process.communicate()[0]
        except BaseException:
            process.terminate()  # it saves what it has
            process.wait()
            raise
    return process.returncode, output
