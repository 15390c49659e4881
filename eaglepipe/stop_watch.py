"""The end of a process that does not answer a stop signal: its main thread is deep in a library, or its step is long.

Python runs handlers of signals in the main thread alone, between two of its instructions. A thread that watches for
signals ends the process by itself, which loses nothing: files appear whole or not at all, blocks that must not be cut
are waited for (`unhurried`), and what only memory holds is saved first (`rescued_by`).
"""

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eaglepipe.errors import EaglepipeError, StoppedError
from eaglepipe.signals import STOP_SIGNALS

_UNHURRIED_SECONDS = 5.0
_PATIENCE_SECONDS = 2.5  # in which a stage stops by itself


class _Gate:
    """Blocks that the end of the process waits for; once it is being closed, none begins but inside another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = Counter[int]()  # blocks by thread
        self._closed = False

    def enter(self) -> None:
        thread = threading.get_ident()
        with self._changed:
            while self._closed and thread not in self._inside:
                self._changed.wait()
            self._inside[thread] += 1

    def leave(self) -> None:
        with self._changed:
            self._inside[threading.get_ident()] -= 1
            self._inside = +self._inside
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        with self._changed:
            self._closed = True  # first, or blocks that follow one another closely would keep it open
            self._changed.wait_for(lambda: not self._inside, timeout)


_gate = _Gate()
_rescues: list[Callable[[], str]] = []
_reporters: list[Callable[[EaglepipeError], None]] = []


@contextmanager
def unhurried() -> Iterator[None]:
    """Make the end of the process wait for the block; does not begin once the process is being ended."""
    _gate.enter()
    try:
        yield
    finally:
        _gate.leave()


def ends_by_itself() -> None:
    """Leave the end of the process to the caller, which is about to exit with a message and a code of its own."""
    _gate.enter()


@contextmanager
def rescued_by(rescue: Callable[[], str]) -> Iterator[None]:
    """Save by `rescue` if the process is ended inside the block; it returns what is saved, for the message.

    It runs in a thread of its own while the block goes on, up to the next unhurried block.
    """
    _rescues.append(rescue)
    try:
        yield
    finally:
        _rescues.remove(rescue)


def end_process(error: EaglepipeError) -> None:
    """End the process from any thread, as the main one waits for something that will not come.

    Blocks that must not be cut are waited for, but not for long: one of them may be what waits.
    """
    _gate.close(_UNHURRIED_SECONDS)
    for report in _reporters or [_print]:
        report(error)
    os._exit(error.exit_code)


def _print(error: EaglepipeError) -> None:
    if str(error):
        print(f"error: {error}", file=sys.stderr, flush=True)


def watch_stops(end: Callable[[EaglepipeError], None]) -> None:
    """Watch for stop signals from now on, in a thread; children that are forked are not watched.

    Args:
        end: reports the error, before the process ends with its exit code.
    """
    _reporters[:] = [end]
    waiting, woken = socket.socketpair()
    woken.setblocking(False)
    thread = threading.Thread(target=_watch, args=(waiting, end), name="stop-watch", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads: signals are answered between two instructions only
        return
    signal.set_wakeup_fd(woken.detach(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """Keep a forked child from waking its parent's thread."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


def _watch(waiting: socket.socket, end: Callable[[EaglepipeError], None]) -> None:
    number = 0
    while number not in STOP_SIGNALS:
        number = waiting.recv(1)[0]  # of other handled signals too
    time.sleep(_PATIENCE_SECONDS)
    _gate.close()
    saved = [rescue() for rescue in reversed(_rescues)]
    message = "; ".join(text for text in saved if text) or "what was published stays, run it again to continue"
    error = StoppedError(f"stopped by {signal.Signals(number).name}; {message}")
    end(error)
    os._exit(error.exit_code)
