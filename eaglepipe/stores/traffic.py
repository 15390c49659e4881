"""Counts of what this process fetched from object stores, and how long its readers waited for it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Totals since the process began."""

    fetched_bytes: int = 0
    waited_seconds: float = 0.0

    def __sub__(self, earlier: "Traffic") -> "Traffic":
        return Traffic(
            fetched_bytes=self.fetched_bytes - earlier.fetched_bytes,
            waited_seconds=self.waited_seconds - earlier.waited_seconds,
        )


_lock = threading.Lock()
_totals = Traffic()


def traffic() -> Traffic:
    """Return the totals so far."""
    return _totals


def fetched(num_bytes: int) -> None:
    """Count bytes that came."""
    _add(num_bytes, 0.0)


@contextmanager
def counted_wait() -> Iterator[None]:
    """Count the time of a block as waiting for a store."""
    started = time.monotonic()
    try:
        yield
    finally:
        _add(0, time.monotonic() - started)


def _add(num_bytes: int, seconds: float) -> None:
    global _totals  # noqa: PLW0603 - counted by any thread, for logs alone
    with _lock:
        _totals = Traffic(
            fetched_bytes=_totals.fetched_bytes + num_bytes, waited_seconds=_totals.waited_seconds + seconds
        )
