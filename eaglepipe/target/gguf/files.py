"""Which GGUF file a target's path means, and the packages that read it."""

import importlib.util
import re
from pathlib import Path

from eaglepipe.errors import CorruptError, TargetError
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.files.tensors import pickled_files, weight_files

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_LFS_POINTER = b"version https://git-lfs"
_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_PACKAGES = ("gguf", "accelerate")
_SHOWN = 8


def find_gguf(path: Path) -> Path | None:
    """Return the GGUF file that a target's local path names, or that its folder holds; None for any other target.

    A folder with weights of another kind is a model folder, whatever else lies in it.

    Raises:
        TargetError: several files of which none is named, one part of several, or a file that is none in spite of
            its name.
    """
    if path.is_dir():
        files = _files_in(path)
        if not files:
            return None
        if len(files) > 1 and not _are_parts(files):
            names = ", ".join(file.name for file in files[:_SHOWN]) + (", …" if len(files) > _SHOWN else "")
            raise TargetError(f"{path}: holds {len(files)} GGUF files; set target.path to one of them: {names}")
        path = files[0]
    elif not path.is_file() or (path.suffix.lower() != SUFFIX and not _begins_with(path, _MAGIC)):
        return None
    _check_whole(path)
    if _begins_with(path, _LFS_POINTER):
        raise TargetError(f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull`")
    if not _begins_with(path, _MAGIC):
        raise TargetError(f"{path}: not a GGUF file, or a damaged one: it does not begin with {_MAGIC.decode()}")
    return path


def check_packages(file: Path) -> None:
    """Check that the packages that read GGUF files are installed.

    Raises:
        TargetError: one is not; names the command.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise TargetError(
            f"{file}: reading GGUF needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed: pip install 'eaglepipe[gguf]'"
        )


def _files_in(folder: Path) -> list[Path]:
    with explained_read_errors(folder, absent=TargetError):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())
    try:
        return [] if files and (weight_files(folder) or pickled_files(folder)) else files
    except CorruptError:  # an index without its files, which is reported where they are read
        return []


def _are_parts(files: list[Path]) -> bool:
    """Return whether files are the parts of one model."""
    parts = [_PART.fullmatch(file.name) for file in files]
    return len({(part["stem"], part["count"]) for part in parts if part}) == 1 and all(parts)


def _check_whole(file: Path) -> None:
    part = _PART.fullmatch(file.name)
    if part is not None and int(part["count"]) > 1:
        first = f"{part['stem']}-00001-of-{part['count']}{SUFFIX}"
        raise TargetError(
            f"{file}: one of the {int(part['count'])} parts of a GGUF model, which transformers reads as one file; "
            f"join them first with llama.cpp: llama-gguf-split --merge {first} {part['stem']}{SUFFIX}"
        )


def _begins_with(path: Path, start: bytes) -> bool:
    with explained_read_errors(path, absent=TargetError), path.open("rb") as stream:
        return stream.read(len(start)) == start
