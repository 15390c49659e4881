"""Checkpoints as folders of safetensors and JSON: visible only when whole, checked before they are trusted.

`checkpoints/step-0000100/` holds draft.safetensors (trainable tensors; frozen embeddings come from the cache),
optimizer.safetensors, state.json and, written last, the marker with every file's size and hash. Tensors are whole,
whatever ranks and shards the run has, so that any number of ranks can go on from them, sharded or not.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.errors import CorruptError, EaglepipeError
from eaglepipe.files.digests import digests_from_json, digests_to_json, file_problem
from eaglepipe.files.hashing import FileDigest
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.leftovers import leftovers, remove_abandoned
from eaglepipe.files.publish import publish_json, published_folder, remove_folder
from eaglepipe.files.tensors import StoredTensors, publish_tensors
from eaglepipe.training.run.precision import COMPUTE_DTYPES
from eaglepipe.training.run.state import RunState, state_from_json

VERSION = 1
MARKER = "COMPLETE"
DRAFT_FILE, OPTIMIZER_FILE, STATE_FILE = "draft.safetensors", "optimizer.safetensors", "state.json"
_FILES = (DRAFT_FILE, OPTIMIZER_FILE, STATE_FILE)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files have been checked; tensors are loaded when asked for."""

    folder: Path
    state: RunState
    contract: dict[str, Any]  # values that a resumed run must agree with
    evaluation_due: bool = False  # the run was ended before the evaluation of this step
    dtype: str | None = None  # that the run computes in; earlier releases did not record it

    def draft_tensors(self) -> Mapping[str, torch.Tensor]:
        return StoredTensors(self.folder / DRAFT_FILE)

    def optimizer_tensors(self) -> Mapping[str, torch.Tensor]:
        return StoredTensors(self.folder / OPTIMIZER_FILE)


def save_checkpoint(
    root: Path,
    *,
    state: RunState,
    contract: Mapping[str, Any],
    draft: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
    evaluation_due: bool = False,
    dtype: str | None = None,
    publish: Callable[[Path, Mapping[str, torch.Tensor]], FileDigest] = publish_tensors,
) -> Path:
    """Publish a checkpoint of this step, replacing one of the same step.

    Args:
        publish: writes a file of tensors, first the draft's, then the optimizer's.

    Raises:
        ResourceError: full disk; earlier checkpoints are untouched.
    """
    final = root / step_name(state.step)
    with published_folder(final) as folder:
        values = {"version": VERSION, "state": asdict(state), "contract": dict(contract)}
        if evaluation_due:
            values["evaluation_due"] = True
        if dtype is not None:
            values["dtype"] = dtype
        digests = {
            DRAFT_FILE: publish(folder / DRAFT_FILE, draft),
            OPTIMIZER_FILE: publish(folder / OPTIMIZER_FILE, optimizer),
            STATE_FILE: publish_json(folder / STATE_FILE, values),
        }
        publish_json(folder / MARKER, digests_to_json(digests))
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Check every file of a checkpoint and read its state.

    Raises:
        CorruptError: naming the file that is missing, altered or of another version.
    """
    try:
        digests = digests_from_json(read_json_object(folder / MARKER))
    except ValueError as error:
        raise CorruptError(f"{folder / MARKER}: {error}") from None
    for name in _FILES:
        problem = file_problem(folder / name, digests[name]) if name in digests else "not listed"
        if problem is not None:
            raise CorruptError(f"{folder / name}: missing, or not the bytes that were saved ({problem})")
    values = read_json_object(folder / STATE_FILE)
    if values.get("version") != VERSION:
        raise CorruptError(f"{folder}: checkpoint version {values.get('version')!r}; this release reads {VERSION}")
    contract = values.get("contract")
    if not isinstance(contract, dict):
        raise CorruptError(f"{folder / STATE_FILE}: not a run's state (it has no contract)")
    dtype = values.get("dtype")
    if dtype not in (None, *COMPUTE_DTYPES):
        raise CorruptError(f"{folder / STATE_FILE}: not a run's state (its dtype is {dtype!r})")
    try:
        state, due = state_from_json(values.get("state")), values.get("evaluation_due") is True
        return Checkpoint(folder=folder, state=state, contract=contract, evaluation_due=due, dtype=dtype)
    except ValueError as error:
        raise CorruptError(f"{folder / STATE_FILE}: not a run's state ({error})") from None


def load_latest(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Load the newest checkpoint that passes its checks; None if there is none at all.

    Raises:
        CorruptError: there are checkpoints, and every one of them fails.
    """
    folders = checkpoint_folders(root)
    failures: list[str] = []
    for folder in reversed(folders):
        try:
            checkpoint = load_checkpoint(folder)
        except CorruptError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            warn(f"{failure}; going back to {folder.name}")
        return checkpoint
    if failures:
        raise CorruptError("no checkpoint can be trusted; delete them to start again\n  " + "\n  ".join(failures))
    return None


def checkpoint_folders(root: Path) -> list[Path]:
    """Return the published checkpoints, oldest first."""
    return sorted(root.glob("step-*")) if root.is_dir() else []


def prune_checkpoints(root: Path, *, keep: int, step: int) -> None:
    """Keep the newest ones up to `step`, and the best of each of those.

    All others are removed: older ones, damaged ones of steps that are taken again, and leftovers of killed saves.
    """
    newest = [folder for folder in checkpoint_folders(root) if folder.name <= step_name(step)][-keep:]
    kept = {folder.name for folder in newest} | {best for folder in newest if (best := _best_of(folder))}
    for folder in checkpoint_folders(root):
        if folder.name not in kept:
            remove_folder(folder)
    remove_abandoned(leftovers(root))


def trained_cache(root: Path) -> str | None:
    """Return the identity of the caches that the newest checkpoint was trained from; None if it is not known.

    No other file of the checkpoint is read, and none is checked.
    """
    for folder in reversed(checkpoint_folders(root)):
        try:
            identity = read_json_object(folder / STATE_FILE)["contract"]["cache"]
        except (CorruptError, KeyError, TypeError):
            continue
        return identity if isinstance(identity, str) else None
    return None


def _best_of(folder: Path) -> str | None:
    try:
        best = state_from_json(read_json_object(folder / STATE_FILE).get("state")).best_step
    except (EaglepipeError, ValueError):
        return None
    return None if best is None else step_name(best)


def step_name(step: int) -> str:
    return f"step-{step:07d}"
