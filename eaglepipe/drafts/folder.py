"""Reads a draft folder in any layout; nothing in it is ever executed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.config_types import config_faults
from eaglepipe.drafts.pickled import CONVERT, PICKLE_FILE, listed, load_state_dict
from eaglepipe.drafts.reading import read_shape
from eaglepipe.drafts.shape import DraftShape, canonical_tensors, faulty_names, without_identity_maps
from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.digests import check_digests
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.tensors import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, load_tensors, pickled_files, weight_files

WEIGHTS_FILE = SINGLE_FILE


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredDraft:
    """Config and tensors of a draft, in any layout."""

    config: dict[str, Any]
    raw_tensors: dict[str, torch.Tensor]  # by the names under which they are stored

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by canonical name, without vocabulary maps of each id to itself."""
        named = canonical_tensors(self.raw_tensors)
        try:
            return without_identity_maps(named, read_shape(self.config, named))
        except DraftError:  # the config is refused by whoever asks for the shape
            return named

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
        DraftError: the folder, its config or its weights are not there, or only pickled, or the config's fields are of
            other types than readers take them for.
        CorruptError: a file is not the one that was published with digests, or not what its name promises.
    """
    check_digests(folder)
    config_file = folder / CONFIG_FILE
    if not config_file.is_file():
        raise DraftError(f"{folder}: not a draft folder, it has no {CONFIG_FILE}")
    files = draft_weight_files(folder)
    config = read_json_object(config_file)
    if faults := list(config_faults(config)):
        raise DraftError(f"{config_file}: {'; '.join(faults)}; correct {'it' if len(faults) == 1 else 'them'}")
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        tensors |= load_state_dict(path) if path.name == PICKLE_FILE else load_tensors(path)
    if faulty := next(faulty_names(tensors), None):
        raise CorruptError(f"{folder}: {faulty!r} is no name of a draft's tensor")
    return StoredDraft(config=config, raw_tensors=tensors)


def draft_weight_files(folder: Path) -> tuple[Path, ...]:
    """List the files with a draft's tensors; raises as `read_draft_folder` does."""
    if files := weight_files(folder) or [path for path in (folder / PICKLE_FILE,) if path.is_file()]:
        return tuple(files)
    check_digests(folder)  # names weights that were there
    if pickles := pickled_files(folder):
        raise DraftError(f"{folder}: only pickled weights ({listed(pickles)}), which may run code when read; {CONVERT}")
    raise DraftError(f"{folder}: no weights; looked for {WEIGHTS_FILE}, {INDEX_FILE} and {PICKLE_FILE}")
