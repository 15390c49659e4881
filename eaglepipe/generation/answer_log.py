"""Answers on their way to a file: an append-only log that a kill at any byte leaves usable.

Line 0 holds the settings; line i the outcome of input row i-1. Rows are appended a window at a time, and a log is only
ever continued at a window's border, so that a continued run draws the same numbers as an undisturbed one.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from eaglepipe.errors import ConfigError
from eaglepipe.files.json_object import diff_fields
from eaglepipe.files.lock import write_lock
from eaglepipe.files.publish import explained_os_errors

Row = dict[str, Any]  # "status": written | skipped | error, and "rows" or "id", "where"; "reason" of what is left out


@dataclass
class Tally:
    """Input rows by outcome; their sum is the number of rows seen."""

    written: int = 0
    output_rows: int = 0
    tokens: int = 0
    ended_early: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        if row["status"] == "written":
            self.written += 1
            self.tokens += row["tokens"]
            self.output_rows += len(row["rows"])
            self.ended_early.update([row["reason"]] if row.get("reason") else [])
        else:
            (self.skipped if row["status"] == "skipped" else self.errors)[row["reason"]] += 1

    @property
    def rows(self) -> int:
        return self.written + self.skipped.total() + self.errors.total()


def lock_of(log: Path) -> Path:
    """Return the lock file of a log."""
    return log.with_name(f"{log.name}.lock")


class AnswerLog(AbstractContextManager["AnswerLog"]):
    """The log at `path`, locked against a second writer."""

    def __init__(
        self, path: Path, settings: Mapping[str, Any], window_rows: int, *, setting: str = "regenerate.output"
    ) -> None:
        """Open or continue the log; all that follows its last whole window is cut off.

        Args:
            setting: of the recipe, that names the output.

        Raises:
            ConfigError: another run is writing it, or it was begun with other settings.
        """
        self.path, self._setting = path, setting
        with ExitStack() as held:
            held.enter_context(write_lock(lock_of(path), path))
            with explained_os_errors(path):
                self._stream: BinaryIO = path.open("a+b")
            held.callback(self._close)
            self.tally = self._resume(settings, window_rows)
            self._held = held.pop_all()

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _close(self) -> None:
        with suppress(OSError):  # all whole windows are on disk already; flushing to a full disk would only fail again
            self._stream.close()

    def append(self, rows: Sequence[Row]) -> None:
        """Make a window's rows durable."""
        self._write(b"".join(json_line(row) for row in rows))
        for row in rows:
            self.tally.add(row)

    def rows(self) -> Iterator[Row]:
        """All rows, in input order."""
        with self.path.open("rb") as stream:
            stream.readline()
            for line in stream:
                yield json.loads(line)

    def _resume(self, settings: Mapping[str, Any], window_rows: int) -> Tally:
        self._stream.seek(0)
        first = self._stream.readline()
        header, own_header = _parsed(first), json_line({"settings": dict(settings)})
        if header is None and own_header.startswith(first):
            self._stream.truncate(0)
            self._write(own_header)
            return Tally()
        if header is None or not isinstance(header.get("settings"), dict):
            raise ConfigError(f"{self.path}: not a log of answers; move it away, or choose another {self._setting}")
        if differences := list(diff_fields(header["settings"], settings)):
            raise ConfigError(
                f"{self.path} was begun with other settings; restore them, or delete it to start over:\n"
                + "\n".join(f"  {line}" for line in differences)
            )
        tally, whole = Tally(), self._stream.tell()
        for window in _whole_windows(self._stream, window_rows):
            for row in window:
                tally.add(row)
            whole = self._stream.tell()
        self._stream.truncate(whole)
        return tally

    def _write(self, data: bytes) -> None:
        with explained_os_errors(self.path):
            self._stream.write(data)
            self._stream.flush()
            os.fsync(self._stream.fileno())


def _whole_windows(stream: BinaryIO, window_rows: int) -> Iterator[list[Row]]:
    """Windows of rows up to the first line that is torn, missing, or no row."""
    while True:
        read = (_parsed(stream.readline()) for _ in range(window_rows))
        rows = [row for row in read if row is not None and _is_outcome(row)]
        if len(rows) < window_rows:
            return
        yield rows


def json_line(value: Mapping[str, Any]) -> bytes:
    """One line of JSON, UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
        json_line(value)  # NaN and half surrogates could not be written again
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_outcome(row: Row) -> bool:
    """Return whether a row holds what is counted and published of it."""
    reason, tokens, rows = row.get("reason"), row.get("tokens"), row.get("rows")
    if row.get("status") in ("skipped", "error"):
        return isinstance(reason, str)
    has_rows = isinstance(rows, list) and all(isinstance(item, dict) for item in rows)
    return row.get("status") == "written" and has_rows and type(tokens) is int and isinstance(reason, str | None)
