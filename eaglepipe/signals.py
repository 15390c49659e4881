"""SIGTERM, SIGINT and SIGUSR1 ask a run to stop after the step it is in; a second one ends it at once.

A step that is worth less than the wait for it is abandoned. `stop_watch` ends those that no handler can reach.
"""

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from eaglepipe.errors import StoppedError

ENDS_WITH_PARENT = "EAGLEPIPE_ENDS_WITH_PARENT"  # the variable of a process that ends when the one that started it does
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
_SAME_REQUEST_SECONDS = 1.0  # a scheduler's signal comes twice: to each process, and from the one that started it


def end_with_parent() -> None:
    """Stop this process as by SIGTERM when the one that started it ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class StopFlag:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._abandonable: list[str] = []  # what is saved, of each such block that runs

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def raise_if_set(self, saved: str) -> None:
        """Raise StoppedError if a signal came; `saved` is the part of its message about saved work."""
        if self.signal_name is not None:
            raise StoppedError(f"stopped by {self.signal_name}; {saved}. Run the same command again to continue")

    @contextmanager
    def abandonable(self, saved: str) -> Iterator[None]:
        """Let a signal end the block between any two of its operations, as it leaves nothing half done.

        Raises:
            StoppedError: as `raise_if_set`, from inside the block, before it or at its end.
        """
        self.raise_if_set(saved)
        self._abandonable.append(saved)
        try:
            yield
        finally:
            self._abandonable.pop()
        self.raise_if_set(saved)  # a library may have swallowed the error

    def ask(self, number: int) -> None:
        """Set the flag, as the handler of a signal.

        Raises:
            StoppedError: an abandonable block is running.
        """
        self.signal_name = signal.Signals(number).name
        if self._abandonable:
            self.raise_if_set(self._abandonable[-1])


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Install the handlers while the block runs.

    Outside the main thread, where Python allows none, the flag stays down.
    """
    flag, asked_at = StopFlag(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def ask_to_stop(number: int, _: FrameType | None) -> None:
        nonlocal asked_at
        if not flag:
            asked_at = time.monotonic()
            flag.ask(number)
        elif time.monotonic() - asked_at > _SAME_REQUEST_SECONDS:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    with stop_signals_to(ask_to_stop) as previous:
        yield flag


@contextmanager
def stop_signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[signal.Signals, Any]]:
    """Install a handler of all stop signals while the block runs; yields those that it replaces."""
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield previous
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)
