"""Temporary files and folders of writers, and the removal of those whose writer was killed.

A living writer holds a shared lock on its temporary, so that those of dead ones can be removed beside it.
"""

import fcntl
import glob
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

_SUFFIX = ".tmp"
_NAME = re.compile(rf"\..+\.[0-9a-f]+{re.escape(_SUFFIX)}", re.DOTALL)


def temporary_sibling(path: Path) -> Path:
    """Return a name beside `path` that nobody else has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_SUFFIX}")


def held_temporary(path: Path, make: Callable[[Path], object]) -> tuple[Path, int | None]:
    """Make a temporary sibling of `path`, and hold it until `release`.

    Returns:
        The temporary, and the descriptor that holds it; None on a file system without locks.
    """
    while True:
        temporary = temporary_sibling(path)
        make(temporary)
        try:
            return temporary, _hold(temporary)
        except (BlockingIOError, FileNotFoundError):  # taken for abandoned before it was held
            continue


def release(hold: int | None) -> None:
    """Let go of a temporary that is published or removed."""
    if hold is not None:
        os.close(hold)


def is_temporary(path: Path) -> bool:
    """Return whether a name is one that `temporary_sibling` gives."""
    return _NAME.fullmatch(path.name) is not None


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files and folders below `folder`, of living and of killed writers."""
    return sorted(path for path in folder.rglob(f".*{_SUFFIX}") if is_temporary(path))


def leftover_siblings(path: Path) -> list[Path]:
    """Return the temporary files and folders of `path` beside it, of living and of killed writers."""
    beside = path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}")
    return sorted(filter(is_temporary, beside))


def remove_abandoned(temporaries: Iterable[Path], *, dry_run: bool = False) -> list[Path]:
    """Remove those temporary files and folders that no living writer holds; returns them.

    Those that may not be removed, such as another user's, stay.
    """
    return [path for path in temporaries if _remove_unless_held(path, dry_run=dry_run)]


def _hold(path: Path) -> int | None:
    """Return a descriptor with a shared lock; None on a file system without locks.

    Raises:
        BlockingIOError, FileNotFoundError: another process removes the file.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        path.lstat()
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_unless_held(path: Path, *, dry_run: bool) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # a link, or without permission to read it, so that nobody here holds it
        return dry_run or _remove(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    else:
        return dry_run or _remove(path)
    finally:
        os.close(descriptor)
    return dry_run or _remove(path)


def _remove(path: Path) -> bool:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
