"""Tensors to and from safetensors files: published atomically, and refused when they are not what they should be."""

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eaglepipe.errors import CorruptError
from eaglepipe.files.publish import TEMPORARY_SUFFIX, explained_os_errors, fsync_folder


def publish_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file that is visible only when whole.

    Raises:
        ResourceError: full disk.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    contents = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with explained_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # safetensors would leave it readable by its owner alone
            _save(temporary, contents)
            temporary.chmod(mode)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(path.parent)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU.

    Raises:
        CorruptError: absent or malformed.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path}: {error}") from None


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # a full disk is told in the message alone
        raise error if number is None else OSError(int(number[1]), str(error)) from error
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
