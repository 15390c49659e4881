"""Reads a draft folder as it was published, by us or by others; nothing in it is ever executed."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.tensors import INDEX_FILE, SINGLE_FILE, load_tensors, weight_files

CONFIG_FILE = "config.json"
WEIGHTS_FILE = SINGLE_FILE
PICKLE_FILE = "pytorch_model.bin"


@dataclass(frozen=True, kw_only=True)
class DraftFolder:
    """A config and tensors under the names in which they are stored."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    weights: tuple[Path, ...]  # the files that hold the tensors


def read_draft_folder(folder: Path) -> DraftFolder:
    """Read config.json and model.safetensors, one or sharded, or else pytorch_model.bin, tensors only.

    Raises:
        DraftError: the folder, its config or its weights are not there.
        CorruptError: one of the files is not what its name says.
    """
    config_file = folder / CONFIG_FILE
    if not config_file.is_file():
        raise DraftError(f"{folder}: not a draft folder, it has no {CONFIG_FILE}")
    weights = draft_weight_files(folder)
    tensors: dict[str, torch.Tensor] = {}
    for path in weights:
        tensors |= _load_pickle(path) if path.suffix == ".bin" else load_tensors(path)
    return DraftFolder(folder=folder, config=read_json_object(config_file), tensors=tensors, weights=weights)


def draft_weight_files(folder: Path) -> tuple[Path, ...]:
    """List the files with a draft's tensors; raises as `read_draft_folder` does."""
    files = weight_files(folder) or [path for path in (folder / PICKLE_FILE,) if path.is_file()]
    if not files:
        raise DraftError(f"{folder}: no weights; looked for {WEIGHTS_FILE}, {INDEX_FILE} and {PICKLE_FILE}")
    return tuple(files)


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `pytorch_model.bin`; whatever else its pickle asks for is refused by the restricted unpickler."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptError(f"{path}: not a plain state dict, and nothing else is loaded ({reason})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CorruptError(f"{path}: a dict of tensors is expected")
    return {str(name): tensor for name, tensor in loaded.items()}
