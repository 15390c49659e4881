"""Errors of the operating system, each as one message and exit code: the machine failed, not a file's content."""

import errno
import os
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eaglepipe.errors import CorruptError, EaglepipeError, ResourceError

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_BROKEN_DISK = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA}
_TEAMS = 3  # of threads that each compute with all cores: of the loop, of its backward pass and of the loader
_OWN_THREADS = 8  # of the loader, of the writer of a shard, of libraries
_NO_THREAD = re.compile("can't start new thread|[Tt]hread.*Resource temporarily unavailable")


@contextmanager
def explained_read_errors(path: Path, *, absent: type[EaglepipeError] = CorruptError) -> Iterator[None]:
    """Turn the system's OSError into an error that names the file and the cause.

    An OSError without a number, as libraries raise it about a file's content, passes.

    Args:
        absent: class of the error if there is no file at `path`.

    Raises:
        EaglepipeError: no permission, or a path that leads nowhere.
        ResourceError: too many open files, or no memory.
        CorruptError: the disk cannot give the bytes.
    """
    try:
        yield
    except OSError as error:
        if error_number(error) is None:
            raise
        raise read_error(path, error, absent=absent) from error


def read_error(path: Path | str, error: OSError, *, absent: type[EaglepipeError] = EaglepipeError) -> EaglepipeError:
    """Return the error to raise for one that the system gave when `path` was read."""
    number, reason = error_number(error), (error.strerror or str(error)).lower()
    if (limit := exhausted(number)) is not None:
        return ResourceError(f"{path}: cannot be read: {limit}")
    if number in _BROKEN_DISK:
        return CorruptError(f"{path}: its disk cannot read it ({reason}); restore the file, or replace the disk")
    if number in (errno.EACCES, errno.EPERM):
        return EaglepipeError(f"{path}: cannot be read (permission denied); let this user read it, or name another")
    kind = absent if number in _ABSENT else EaglepipeError
    return kind(f"{path}: cannot be read ({reason})")


def exhausted(number: int | None) -> str | None:
    """Return the limit that an errno stands for, and how to raise it; None if it stands for no limit."""
    if number == errno.EMFILE:
        return f"too many open files (limit {_limit(resource.RLIMIT_NOFILE)}); raise the limit with `ulimit -n`"
    if number == errno.ENFILE:
        return "too many open files on this machine; end other programs, or raise fs.file-max"
    if number == errno.EFBIG:
        return f"file size limit ({_limit(resource.RLIMIT_FSIZE)} bytes); raise it with `ulimit -f`"
    if number == errno.EAGAIN:
        return f"no more threads or processes (limit {_limit(resource.RLIMIT_NPROC)}); raise the limit with `ulimit -u`"
    if number == errno.ENOMEM:
        return "out of memory; end other programs, or take a machine with more"
    return None


def require_threads() -> None:
    """Check that as many threads can be started as numerical libraries will, which end the process if they cannot.

    Raises:
        ResourceError: fewer can be.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    needed = _OWN_THREADS + _TEAMS * (int(asked) if asked.isdecimal() else os.cpu_count() or 1)
    released = threading.Event()
    threads = [threading.Thread(target=released.wait, daemon=True) for _ in range(needed)]
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError:
        limit = exhausted(errno.EAGAIN)
        missed = f"{needed} are needed, {len(started)} could start"
        raise ResourceError(f"{limit}, or set OMP_NUM_THREADS lower: {missed}") from None
    finally:
        released.set()
        for thread in started:
            thread.join()


def error_number(error: BaseException) -> int | None:
    """Return the errno of an error, also of one that a library in Rust gives in its message alone."""
    number = error.errno if isinstance(error, OSError) else None
    written = re.search(r"os error (\d+)", str(error)) if number is None else None
    return number if written is None else int(written[1])


def check_readable(path: Path, *, absent: type[EaglepipeError] = CorruptError) -> None:
    """Open a file and close it, before a library does whose errors do not tell why it cannot.

    Raises:
        EaglepipeError: as `explained_read_errors` does.
    """
    with explained_read_errors(path, absent=absent), path.open("rb"):
        pass


def _limit(kind: int) -> str:
    limit, _ = resource.getrlimit(kind)
    return "none" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def uncaught_error(error: BaseException) -> EaglepipeError | None:
    """Return the error to report for one of the system that nothing below has explained; None for any other error."""
    if isinstance(error, OSError) and error.filename is not None:
        return read_error(os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename, error)
    number = errno.EAGAIN if _NO_THREAD.search(str(error)) else error_number(error)
    if (limit := exhausted(number)) is not None:
        return ResourceError(limit)
    return EaglepipeError(f"the system refused: {error}") if isinstance(error, OSError) else None
