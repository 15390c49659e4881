"""Tensors to and from safetensors files, alone or in a model folder: published atomically, refused if malformed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eaglepipe.errors import CorruptError
from eaglepipe.files.hashing import FileDigest, hash_file
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import published_file
from eaglepipe.files.system_errors import check_readable, error_number

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Suffixes under which weights and optimizer states are pickled, which may run code when read."""
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


def publish_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileDigest:
    """Write a safetensors file that is visible only when whole; returns its digest.

    The file is read back for the digest: the library writes it without passing its bytes on, and would hold all of
    them in memory a second time to return them.

    Raises:
        ResourceError: full disk.
    """
    with published_file(path) as pending:
        mode = pending.temporary.stat().st_mode  # safetensors leaves it readable by its owner alone
        stored = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(stored, pending.temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            number = error_number(error)  # only the message tells a full disk from a bad tensor
            raise error if number is None else OSError(number, str(error)) from error
        pending.temporary.chmod(mode)
        return FileDigest(bytes=pending.temporary.stat().st_size, xxh3_128=hash_file(pending.temporary))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a file, on the CPU.

    Raises:
        CorruptError: absent or malformed.
        EaglepipeError, ResourceError: the system does not let it be read.
    """
    check_readable(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path}: not a readable safetensors file: {error}") from None


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder, one or sharded, sorted; empty if there are none.

    Raises:
        CorruptError: the index is malformed, or names a file that is not in the folder.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        return []
    weight_map = read_json_object(index).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
        raise CorruptError(f"{index}: not an index of safetensors files")
    names = sorted(set(weight_map.values()))
    if foreign := [name for name in names if Path(name).name != name]:
        raise CorruptError(f"{index}: {foreign[0]!r} is not the name of a file in this folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CorruptError(f"{folder}: weights missing: {', '.join(missing)} (named by {INDEX_FILE})")
    return [folder / name for name in names]
