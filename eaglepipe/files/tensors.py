"""Tensors to and from safetensors files: published atomically, refused if absent or malformed."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eaglepipe.errors import CorruptError
from eaglepipe.files.publish import published_file


def publish_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file that is visible only when whole.

    Raises:
        ResourceError: full disk.
    """
    with published_file(path) as pending:
        mode = pending.temporary.stat().st_mode  # safetensors leaves it readable by its owner alone
        _save(pending.temporary, {name: tensor.detach().contiguous() for name, tensor in tensors.items()})
        pending.temporary.chmod(mode)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load all tensors of a file, on the CPU.

    Raises:
        CorruptError: absent or malformed.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"{path}: {error}") from None


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # only the message tells a full disk from a bad tensor
        raise error if number is None else OSError(int(number[1]), str(error)) from error
