"""Keeps the tensors of a published draft that a run needs to resume when that draft's folder is gone.

Checkpoints hold the tensors that training changes, the cache has the target's embeddings. Frozen tensors of the
published draft are in neither, so they lie beside the checkpoints, once a run.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from transformers import PreTrainedModel

from eaglepipe.drafts.init_from import init_digest, init_from
from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_json
from eaglepipe.files.tensors import load_tensors, publish_tensors
from eaglepipe.training.run.checkpoint import checkpoint_folders

RECORD_FILE, TENSORS_FILE = "start.json", "start.safetensors"


@dataclass(frozen=True, kw_only=True)
class DraftInit:
    """The published draft that a run's draft is initialised from."""

    init: str  # its folder, as the recipe names it
    digest: str  # of its weights
    checkpoints: Path
    is_recorded: bool = False  # by a run that resumes
    tensors: str | None = None  # recorded xxh3_128 of `start.safetensors`, if there is such a file

    @property
    def folder(self) -> Path:
        """The published draft's folder, which may be gone if it is recorded."""
        return Path(self.init).expanduser()


def open_init(init: str, checkpoints: Path) -> DraftInit:
    """Identify the published draft by its folder or, if that is gone, by the record beside a run's checkpoints.

    Raises:
        DraftError: the folder is gone, and the run was not initialised from it.
        CorruptError: the record is damaged.
    """
    folder, path = Path(init).expanduser(), checkpoints / RECORD_FILE
    record = read_json_object(path) if checkpoint_folders(checkpoints) and path.exists() else None
    if record is not None and record.keys() != {"init", "digest", "tensors"}:
        raise _damaged(path)
    if folder.exists() or record is None:
        digest = init_digest(folder)
        if record is None or record["digest"] != digest:
            return DraftInit(init=init, digest=digest, checkpoints=checkpoints)
    elif record["init"] != init:
        raise DraftError(
            f"{folder}: no such folder; this run was initialised from {record['init']}, set draft.init to it"
        )
    return DraftInit(**{**record, "init": init}, checkpoints=checkpoints, is_recorded=True)


def apply_init(draft: PreTrainedModel, init: DraftInit, *, write_record: bool) -> tuple[str, ...]:
    """Copy the published weights into a freshly built draft, and record the tensors that checkpoints will not hold.

    A run that resumes gets the frozen tensors alone, since the others are in its checkpoint. Returns notes for the
    user, a line each.

    Raises:
        DraftError, CorruptError: as `init_from` does, or the record is damaged.
    """
    if init.is_recorded:
        _restore(draft, init)
        note = f"{init.folder} is gone; the run continues with the tensors that it recorded"
        return () if init.folder.exists() else (note,)
    before = _frozen_digests(draft)
    notes = init_from(draft, init.folder)
    if write_record:
        changed = [name for name, digest in _frozen_digests(draft).items() if digest != before[name]]
        path = init.checkpoints / TENSORS_FILE
        if changed:  # before the record, which promises that they are whole
            publish_tensors(path, {name: draft.get_parameter(name) for name in changed})
        record = {"init": init.init, "digest": init.digest, "tensors": hash_file(path) if changed else None}
        publish_json(init.checkpoints / RECORD_FILE, record)
    return notes


@torch.no_grad()
def _restore(draft: PreTrainedModel, init: DraftInit) -> None:
    if init.tensors is None:
        return
    path = init.checkpoints / TENSORS_FILE
    if not path.is_file() or hash_file(path) != init.tensors:
        raise _damaged(path)
    for name, tensor in load_tensors(path).items():
        draft.get_parameter(name).copy_(tensor)


def _damaged(path: Path) -> CorruptError:
    return CorruptError(
        f"{path}: missing or damaged; if the folder of draft.init still exists, delete "
        f"{path.with_name(RECORD_FILE)} and run again"
    )


def _frozen_digests(draft: PreTrainedModel) -> dict[str, str]:
    frozen = {name: value for name, value in draft.named_parameters() if not value.requires_grad}
    return {name: xxhash.xxh3_128_hexdigest(value.detach().numpy()) for name, value in frozen.items()}
