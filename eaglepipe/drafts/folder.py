"""Reads a draft folder in any layout; nothing in it is ever executed."""

import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.reading import read_shape
from eaglepipe.drafts.shape import DraftShape, canonical_tensors
from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.digests import check_digests
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.tensors import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, load_tensors, weight_files

WEIGHTS_FILE = SINGLE_FILE
PICKLE_FILE = "pytorch_model.bin"


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredDraft:
    """Config and tensors of a draft, in any layout."""

    config: dict[str, Any]
    raw_tensors: dict[str, torch.Tensor]  # by the names under which they are stored

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by canonical name."""
        return canonical_tensors(self.raw_tensors)

    @cached_property
    def shape(self) -> DraftShape:
        """The shape that the config describes.

        Raises:
            DraftError: the config lacks a size.
        """
        return read_shape(self.config, self.tensors)


def read_draft_folder(folder: Path) -> StoredDraft:
    """Read config.json and model.safetensors, one or sharded, or else the tensors of pytorch_model.bin.

    Raises:
        DraftError: the folder, its config or its weights are not there.
        CorruptError: a file is not the one that was published with digests, or not what its name promises.
    """
    check_digests(folder)
    config_file = folder / CONFIG_FILE
    if not config_file.is_file():
        raise DraftError(f"{folder}: not a draft folder, it has no {CONFIG_FILE}")
    tensors: dict[str, torch.Tensor] = {}
    for path in draft_weight_files(folder):
        tensors |= _load_pickle(path) if path.suffix == ".bin" else load_tensors(path)
    return StoredDraft(config=read_json_object(config_file), raw_tensors=tensors)


def draft_weight_files(folder: Path) -> tuple[Path, ...]:
    """List the files with a draft's tensors; raises as `read_draft_folder` does."""
    if files := weight_files(folder) or [path for path in (folder / PICKLE_FILE,) if path.is_file()]:
        return tuple(files)
    check_digests(folder)  # names weights that were there
    raise DraftError(f"{folder}: no weights; looked for {WEIGHTS_FILE}, {INDEX_FILE} and {PICKLE_FILE}")


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a `pytorch_model.bin`; the restricted unpickler refuses whatever else its pickle asks for."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptError(f"{path}: not a plain state dict, and nothing else is loaded ({reason})") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CorruptError(f"{path}: a dict of tensors is expected")
    return {str(name): tensor for name, tensor in loaded.items()}
