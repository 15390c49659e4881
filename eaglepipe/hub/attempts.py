"""Attempts to fetch the files of one repository: how often, how long, and the line that each failure prints.

A file is given up if it makes no progress for `patience_s`, however it fails: by errors, cut answers or a trickle.
"""

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from tqdm import tqdm

from eaglepipe.errors import EaglepipeError, UnreachableError, printable

PATIENCE_VARIABLE = "EAGLEPIPE_HUB_PATIENCE_S"
_DEFAULT_PATIENCE_S = 35.0
_WAITS = (1 / 35, 2 / 35, 4 / 35, 8 / 35, 8 / 35)  # of the patience: 1, 2, 4, 8 and 8 s
_PROGRESS_BYTES = 2**18  # in `patience_s`, or the rest of the file


def patience_seconds() -> float:
    """Return the time that a file may take without progress, as the environment has it.

    Raises:
        EaglepipeError: the variable is no positive number.
    """
    return positive_seconds(PATIENCE_VARIABLE, _DEFAULT_PATIENCE_S)


def positive_seconds(variable: str, default: float) -> float:
    """Return the seconds that an environment variable sets.

    Raises:
        EaglepipeError: it is no positive number.
    """
    text = os.environ.get(variable, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise EaglepipeError(f"{variable}={text!r} is not a number of seconds above 0")
    return seconds


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer that further attempts do not change."""

    status: int
    code: str  # as the Hub has it: RepoNotFound, GatedRepo and others, or nothing
    file: str
    message: str


@dataclass(kw_only=True)
class _File:
    failures: int = 0
    reason: str = ""  # of the last failure
    since: float | None = None  # of the last progress, or of the first attempt that failed
    offset: int = 0  # that far it had come then


class Attempts:
    """What has failed so far in one call of a server's library, over all of its threads."""

    def __init__(self, name: str, *, server: str = "the Hub", patience_s: float | None = None) -> None:
        self.name, self._server = name, server
        self.patience_s = patience_seconds() if patience_s is None else patience_s
        self.given_up: UnreachableError | None = None
        self.refusals: list[Refusal] = []
        self._files: dict[str, _File] = {}
        self._lock, self._over = threading.Lock(), threading.Event()

    def raise_if_given_up(self) -> None:
        """End a thread of the library after another one has given up."""
        if self.given_up is not None:
            raise self.given_up

    def time_left(self, file: str) -> float:
        """Return the seconds that a file still has."""
        since = self._of(file).since
        return self.patience_s if since is None else max(self.patience_s - (time.monotonic() - since), 0.0)

    def failed(self, file: str, reason: str, *, begun: float, wait_s: float | None = None) -> None:
        """Count a failure, and wait before the next attempt: as long as the server asks for, if it does.

        Raises:
            UnreachableError: the file has had all its time or attempts.
        """
        state = self._of(file)
        with self._lock:
            self.raise_if_given_up()
            state.failures, state.reason = state.failures + 1, reason
            state.since = begun if state.since is None else state.since
            if state.failures > len(_WAITS):
                self._give_up(file, reason)
            wait = _WAITS[state.failures - 1] * self.patience_s if wait_s is None else wait_s
            if time.monotonic() + wait - state.since > self.patience_s:
                self._give_up(file, reason if wait_s is None else f"{reason}, and asks to wait for {wait_s:,.0f} s")
            say(f"{self.name}: {file}: {reason}; trying again in {wait:.0f} s")
        self._over.wait(wait)
        self.raise_if_given_up()

    def overdue(self, file: str) -> None:
        """Give a file up that has had all its time."""
        reason = self._of(file).reason or f"no complete answer in {self.patience_s:.0f} s"
        with self._lock, suppress(UnreachableError):
            self._give_up(file, reason)

    def received(self, file: str, offset: int, *, begun: float) -> None:
        """Note that a download of `file` has come to `offset`.

        Raises:
            UnreachableError: it has come too little further for too long.
        """
        state = self._of(file)
        with self._lock:
            self.raise_if_given_up()
            now = time.monotonic()
            state.since = begun if state.since is None else state.since
            if offset >= state.offset + _PROGRESS_BYTES:
                state.failures, state.reason, state.since, state.offset = 0, "", now, offset
            elif now - state.since > self.patience_s:
                self._give_up(file, f"only {max(offset - state.offset, 0):,} bytes in {now - state.since:.0f} s")

    def succeeded(self, file: str) -> None:
        """Forget the failures of a file."""
        with self._lock:
            self._files.pop(file, None)

    def _of(self, file: str) -> _File:
        with self._lock:
            return self._files.setdefault(file, _File())

    def _give_up(self, file: str, reason: str) -> NoReturn:
        self.given_up = UnreachableError(
            f"{self.name}: {self._server} cannot be reached, or not completely: {file}: {reason}. "
            "It may work later: run the same command again"
        )
        self._over.set()
        raise self.given_up


def say(message: str) -> None:
    """Print a line about the Hub, above any progress bar."""
    tqdm.write(printable(message), file=sys.stderr)
