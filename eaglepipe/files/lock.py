"""Locks of files and folders that one process writes at a time; a lock ends with its process, however that ends."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from eaglepipe.errors import ConfigError, EaglepipeError
from eaglepipe.files.leftovers import remove_abandoned
from eaglepipe.files.publish import explained_os_errors

FOLDER_LOCK = ".writer.lock"


@contextmanager
def write_lock(lock: Path, subject: Path) -> Iterator[None]:
    """Hold the lock file `lock` of `subject` while the block runs.

    The process that holds it is described beside it, for the message that another one gets.

    Raises:
        ConfigError: another process holds it; names that process.
        EaglepipeError: the lock file cannot be written.
    """
    holder = _holder(lock)
    with explained_os_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file_lock = FileLock(lock, blocking=False)
        try:
            file_lock.acquire()
        except Timeout:
            raise ConfigError(
                f"{subject}: another process is writing it{_described(holder)}; wait for it, end it, or choose another"
            ) from None
        except NotImplementedError:
            raise EaglepipeError(f"{subject}: its file system has no file locks; choose another disk") from None
    try:
        with explained_os_errors(holder):
            holder.write_text(
                f"process {os.getpid()} on {platform.node()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n",
                encoding="utf-8",
            )
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
            lock.unlink()
            lock.parent.rmdir()  # unless something was written
        file_lock.release()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is about to be written; raises what `write_lock` does."""
    with write_lock(folder / FOLDER_LOCK, folder):
        yield


def is_locked(lock: Path) -> bool:
    """Return whether a living process holds a lock file."""
    return lock.exists() and not remove_abandoned([lock], dry_run=True)


def remove_stale_lock(lock: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove a lock file, and the description beside it, whose process was killed; returns what was removed."""
    removed = remove_abandoned([lock] if lock.exists() else [], dry_run=dry_run)
    holder = _holder(lock)
    return removed + (remove_abandoned([holder], dry_run=dry_run) if holder.exists() and not lock.exists() else [])


def _holder(lock: Path) -> Path:
    return lock.with_suffix(".holder")


def _described(holder: Path) -> str:
    try:
        return f" ({holder.read_text(encoding='utf-8').strip()})"
    except (OSError, UnicodeDecodeError):
        return ""
