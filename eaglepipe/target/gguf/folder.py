"""Targets that come as a GGUF file, whose weights are dequantised once into a model folder like any other.

The folder lies under $EAGLEPIPE_GGUF_ROOT, by default in the user's cache, is named by the file's hash, and serves
every recipe that names the file; the target's fingerprint stays that of the file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from eaglepipe.errors import TargetError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.leftovers import is_temporary, remove_abandoned
from eaglepipe.files.publish import explained_os_errors, publish_json, published_folder
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.progress import note
from eaglepipe.target.fingerprint import GGUF_ORIGIN, tensors_fingerprint
from eaglepipe.target.gguf.dequantise import write_model
from eaglepipe.target.gguf.files import check_packages
from eaglepipe.target.gguf.header import read_header

ROOT_VARIABLE = "EAGLEPIPE_GGUF_ROOT"


@dataclass(frozen=True, kw_only=True)
class GgufOrigin:
    """The file that a dequantised folder was made from."""

    file: str  # its name
    xxh3_128: str
    tensors: str  # fingerprint of the dequantised tensors


@dataclass(frozen=True, kw_only=True)
class _State:
    """What changes with a file's content."""

    bytes: int
    modified_ns: int
    inode: int


def dequantised_folder(file: Path) -> Path:
    """Return the model folder of a GGUF file, with its tokenizer and chat template; made if it is not there yet.

    Weights are kept in float32, exactly as the file has them; `target.dtype: auto` runs quantised ones in bfloat16.

    Raises:
        TargetError: a package is missing, or the file is damaged or of an architecture that transformers cannot read.
        ResourceError: not enough disk or memory.
    """
    state = _state(file)
    digest = _digest(file, state)
    folder = _root() / f"{file.stem[:60]}-{digest[:16]}"
    if (folder / GGUF_ORIGIN).is_file():
        return folder
    check_packages(file)
    header = read_header(file)
    with _alone(folder, file):
        if not (folder / GGUF_ORIGIN).is_file():
            remove_abandoned(path for path in _root().glob(".*.tmp") if is_temporary(path))
            note(f"target    dequantising {file} once, into {folder}")
            with published_folder(folder) as temporary:
                write_model(file, header, temporary)
                if _state(file) != state:
                    raise TargetError(f"{file}: it changed while it was read; run the same command again")
                origin = GgufOrigin(file=file.name, xxh3_128=digest, tensors=tensors_fingerprint(temporary))
                publish_json(temporary / GGUF_ORIGIN, asdict(origin))
    return folder


@contextmanager
def _alone(folder: Path, file: Path) -> Iterator[None]:
    """Wait for another process that makes the folder, and keep others waiting."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    with explained_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            note(f"target    waiting for another process that dequantises {file}")
            lock.acquire()
        except NotImplementedError:  # a file system without locks: whoever is last replaces an equal folder
            pass
    try:
        yield
    finally:
        lock.release()


def _state(file: Path) -> _State:
    with explained_read_errors(file, absent=TargetError):
        status = file.stat()
    return _State(bytes=status.st_size, modified_ns=status.st_mtime_ns, inode=status.st_ino)


@cache
def _digest(file: Path, state: _State) -> str:
    """Hash a file, once in a process for each state that it was found in."""
    return hash_file(file)


def _root() -> Path:
    given = os.environ.get(ROOT_VARIABLE)
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(given).expanduser() if given else cache_folder.expanduser() / "eaglepipe" / "gguf"
