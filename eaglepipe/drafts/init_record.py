"""What a run keeps of the published draft that it starts from, so that it goes on when that draft's folder is gone.

Checkpoints hold what training changes, the cache has the target's embeddings. Frozen tensors that the published draft
brought along are in neither, so they lie beside the checkpoints, once a run.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from transformers import PreTrainedModel

from eaglepipe.drafts.init_from import start_digest, start_from
from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_json
from eaglepipe.files.tensors import load_tensors, publish_tensors
from eaglepipe.training.run.checkpoint import checkpoint_folders

RECORD_FILE, TENSORS_FILE = "start.json", "start.safetensors"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a run's folder of checkpoints says of its start; `start.safetensors` is there where it has a digest."""

    root: Path
    init: str
    digest: str
    tensors: str | None


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a draft's weights come from before the first step."""

    folder: Path  # of the published draft
    init: str  # the same, as the recipe names it
    digest: str  # of its weights
    kept: Kept | None  # of a run that resumes


def open_start(init: str, checkpoints: Path) -> Start:
    """The start of a run that keeps its checkpoints there; the draft's folder may be gone once there is one.

    Raises:
        DraftError: the folder is gone, and the run has not started from it.
        CorruptError: the record of the start is not what was written.
    """
    kept = _read_record(checkpoints) if checkpoint_folders(checkpoints) else None
    folder = Path(init).expanduser()
    if folder.exists() or kept is None:
        digest = start_digest(folder)
        is_same = kept is not None and kept.digest == digest
        return Start(folder=folder, init=init, digest=digest, kept=kept if is_same else None)
    if kept.init != init:
        raise DraftError(f"{folder}: no such folder, and this run started from {kept.init}; name that one again")
    return Start(folder=folder, init=init, digest=kept.digest, kept=kept)


def take_start(draft: PreTrainedModel, start: Start, *, keep_in: Path | None) -> tuple[str, ...]:
    """Give a freshly built draft the weights of its start, and keep in a folder what checkpoints will not hold.

    A run that resumes gets the frozen tensors alone, since the others are in its checkpoint.

    Returns: what a user should know of it, a line each.

    Raises:
        DraftError, CorruptError: as `start_from` does, or what was kept is damaged.
    """
    if start.kept is not None:
        _restore(draft, start.kept)
        return () if start.folder.exists() else (f"{start.folder} is gone; the run goes on from what it kept of it",)
    built = _frozen_digests(draft)
    notes = start_from(draft, start.folder)
    if keep_in is not None:
        brought = [name for name, digest in _frozen_digests(draft).items() if digest != built[name]]
        _keep(draft, brought, start, keep_in)
    return notes


def _keep(draft: PreTrainedModel, names: list[str], start: Start, root: Path) -> None:
    """Tensors first: the record says that they are whole."""
    digest = None
    if names:
        publish_tensors(root / TENSORS_FILE, {name: draft.get_parameter(name) for name in names})
        digest = hash_file(root / TENSORS_FILE)
    publish_json(root / RECORD_FILE, {"init": start.init, "digest": start.digest, "tensors": digest})


@torch.no_grad()
def _restore(draft: PreTrainedModel, kept: Kept) -> None:
    if kept.tensors is None:
        return
    path = kept.root / TENSORS_FILE
    if not path.is_file() or hash_file(path) != kept.tensors:
        raise CorruptError(_damaged(path))
    for name, tensor in load_tensors(path).items():
        draft.get_parameter(name).copy_(tensor)


def _read_record(root: Path) -> Kept | None:
    path = root / RECORD_FILE
    if not path.exists():
        return None
    record = read_json_object(path)
    if record.keys() != {"init", "digest", "tensors"}:
        raise CorruptError(_damaged(path))
    return Kept(root=root, **record)


def _damaged(path: Path) -> str:
    return (
        f"{path}: missing, or not what was written; while the folder of draft.init is there, delete "
        f"{path.with_name(RECORD_FILE)} and run again"
    )


def _frozen_digests(draft: PreTrainedModel) -> dict[str, str]:
    frozen = {name: value for name, value in draft.named_parameters() if not value.requires_grad}
    return {name: xxhash.xxh3_128_hexdigest(value.detach().numpy()) for name, value in frozen.items()}
