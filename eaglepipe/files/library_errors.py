"""Errors that libraries raise about the content of files, as ours: such files may have been written by anyone."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from eaglepipe.errors import EaglepipeError
from eaglepipe.files.system_errors import read_error

_BARE = (LookupError, ArithmeticError, AssertionError, AttributeError, TypeError)  # whose messages need their names
_SHOWN_CHARACTERS = 300


@contextmanager
def explained_library_errors(kind: type[EaglepipeError], subject: str) -> Iterator[None]:
    """Raise what a library raises inside as one line of an error of ours: `subject`, then the reason.

    Libraries check what they read where they use it, so the content of a file decides which error comes: any of them
    counts, panics of Rust among them. Errors of ours, and lack of memory, pass.
    """
    try:
        yield
    except (EaglepipeError, MemoryError):
        raise
    except OSError as error:
        if error.errno is None or error.filename is None:  # a library's own words about a file
            raise kind(f"{subject}: {reason(error)}") from error
        raise read_error(str(error.filename), error, absent=kind) from error
    except Exception as error:
        raise kind(f"{subject}: {reason(error)}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise kind(f"{subject}: {reason(error)}") from error


@contextmanager
def without_panic_report() -> Iterator[None]:
    """Withhold what is written to standard error inside if Rust panics, whose report is pages long; else pass it on."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            if not panicked and (text := written.read()):
                os.write(2, text)


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of a library in Rust; pyo3 derives them from BaseException alone."""
    return type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    """Return a library's message on one line, with the name of the error's class if that says more."""
    message = " ".join(str(error).split())
    name = type(error).__name__
    return (f"{name}: {message}" if message and isinstance(error, _BARE) else message or name)[:_SHOWN_CHARACTERS]
