"""Reads a draft folder as it was published, by us or by others; nothing in it is ever executed."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.tensors import load_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
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
    weights = weight_files(folder)
    tensors: dict[str, torch.Tensor] = {}
    for path in weights:
        tensors |= _load_pickle(path) if path.suffix == ".bin" else load_tensors(path)
    return DraftFolder(folder=folder, config=read_json(config_file), tensors=tensors, weights=weights)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CorruptError: absent, not JSON, or another kind of value.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CorruptError(f"{path}: a JSON object is expected, this is a {type(value).__name__}")
    return value


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with a draft's tensors; raises what `read_draft_folder` does."""
    if (folder / WEIGHTS_FILE).is_file():
        return (folder / WEIGHTS_FILE,)
    if (folder / INDEX_FILE).is_file():
        return _shards(folder)
    if (folder / PICKLE_FILE).is_file():
        return (folder / PICKLE_FILE,)
    raise DraftError(f"{folder}: no weights; looked for {WEIGHTS_FILE}, {INDEX_FILE} and {PICKLE_FILE}")


def _shards(folder: Path) -> tuple[Path, ...]:
    index = read_json(folder / INDEX_FILE).get("weight_map")
    names = sorted(set(index.values())) if isinstance(index, dict) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CorruptError(f"{folder / INDEX_FILE}: {name!r} is not the name of a file in this folder")
    if not names:
        raise CorruptError(f"{folder / INDEX_FILE}: it names no files")
    return tuple(folder / name for name in names)


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
