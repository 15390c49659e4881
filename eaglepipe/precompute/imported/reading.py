"""Files of tensors that other tools wrote: safetensors, or pickles of plain tensors, read without running code."""

import gzip
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from eaglepipe.chat.faults import RowError
from eaglepipe.errors import DataError
from eaglepipe.files.library_errors import explained_library_errors
from eaglepipe.files.system_errors import explained_read_errors

_MOST_UNPACKED = 2**36  # bytes of a compressed file


class UnreadableFileError(RowError):
    """A file that is truncated, or not of its kind."""

    def __init__(self, message: str) -> None:
        super().__init__("unreadable_file", message)


def read_safetensors(
    path: Path, where: str, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """Read the named tensors of a file, which messages name `where`.

    Raises:
        RowError: truncated, or without one of `names`.
    """
    explained = explained_library_errors(UnreadableFileError, f"{where}: truncated, or no safetensors file")
    with explained, safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        require(where, stored, names)
        return {name: file.get_tensor(name) for name in (*names, *optional) if name in stored}


def read_pickled(path: Path, where: str, names: Sequence[str]) -> dict[str, Any]:
    """Read a file of `torch.save`, gzipped if its name says so, that holds a dictionary of tensors and plain values.

    Raises:
        RowError: truncated, without one of `names`, or holds anything else, which would run code when read.
    """
    with explained_library_errors(UnreadableFileError, f"{where}: truncated, or more than tensors and plain values"):
        source: Any = io.BytesIO(_unpacked(path, where)) if path.suffix == ".gz" else path
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping):
        raise UnreadableFileError(f"{where}: holds a {type(loaded).__name__}, not a dictionary of tensors")
    require(where, {name for name, value in loaded.items() if value is not None}, names)
    return {str(name): value for name, value in loaded.items()}


def _unpacked(path: Path, where: str) -> bytes:
    with gzip.open(path) as stream:
        data = stream.read(_MOST_UNPACKED + 1)
    if len(data) > _MOST_UNPACKED:
        raise UnreadableFileError(f"{where}: more than {_MOST_UNPACKED:,} bytes once unpacked")
    return data


def require(where: str, stored: set[Any], names: Sequence[str]) -> None:
    """Raise RowError if a file lacks one of the named tensors."""
    if missing := [name for name in names if name not in stored]:
        held = ", ".join(sorted(map(str, stored))[:12]) or "nothing"
        raise RowError("missing_field", f"{where}: lacks {', '.join(missing)}; it holds {held}")


def walk_files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files below a folder whose names end so, in the order of their names."""
    with explained_read_errors(folder):
        for place, folders, names in os.walk(folder):
            folders.sort(key=natural)
            yield from (Path(place, name) for name in sorted(names, key=natural) if name.endswith(suffixes))


def natural(name: str) -> tuple[int, str]:
    """Order names by the number at their end, as tools count their samples, then by the name."""
    stem = name.split(".", maxsplit=1)[0]
    digits = len(stem) - len(stem.rstrip("0123456789"))
    return int(stem[len(stem) - digits :] or 0) if digits < 19 else 0, name


def relative_id(folder: Path, path: Path, suffixes: Sequence[str]) -> str:
    """Return a file's path below a folder, without its suffix."""
    name = path.relative_to(folder).as_posix()
    suffix = next(suffix for suffix in suffixes if name.endswith(suffix))
    return name.removesuffix(suffix)


def numbers(where: str, name: str, value: object, *, kind: str) -> torch.Tensor:
    """Return a tensor of a sample, if its type is of this kind: `int` or `float`.

    Raises:
        RowError: it is not.
    """
    if not isinstance(value, torch.Tensor):
        raise RowError("wrong_shape", f"{where}: {name} is a {type(value).__name__}, not a tensor")
    is_float, is_bool = value.is_floating_point(), value.dtype == torch.bool
    fits = {"float": is_float, "int": not (is_float or is_bool or value.is_complex()), "mask": not value.is_complex()}
    if value.layout is not torch.strided or value.is_quantized or not fits[kind]:
        raise RowError("wrong_shape", f"{where}: {name} has type {value.dtype}, and {kind} is expected")
    return value


def without_leading_ones(tensor: torch.Tensor, num_dims: int) -> torch.Tensor:
    """Drop dimensions of size 1 in front, as tools store a sample as a batch of one."""
    while tensor.dim() > num_dims and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def check_folder(folder: Path) -> None:
    """Raise DataError if a folder is not there."""
    with explained_read_errors(folder):
        if not folder.exists():
            raise DataError(f"{folder}: does not exist")
        if not folder.is_dir():
            raise DataError(f"{folder}: a file; name the folder that the tool has written")
