"""Rows on their way to a log: whole windows of them, and outcomes that come in any order."""

import time
from contextlib import AbstractContextManager

from eaglepipe.generation.answer_log import AnswerLog, Row

_FLUSH_SECONDS = 1.0


class Windows(AbstractContextManager["Windows"]):
    """Rows in order, of which whole windows become durable, at most every second and when the block ends."""

    def __init__(self, log: AnswerLog, window_rows: int) -> None:
        self._log, self._window_rows = log, window_rows
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._flush(len(self._rows) // self._window_rows * self._window_rows)

    def put(self, row: Row) -> None:
        """Take the next row."""
        self._rows.append(row)
        if len(self._rows) >= self._window_rows and time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush(len(self._rows) // self._window_rows * self._window_rows)

    def close(self) -> None:
        """Make all rows durable, the last window's too, which no row follows."""
        self._flush(len(self._rows))

    def _flush(self, count: int) -> None:
        if count:
            self._log.append(self._rows[:count])
        self._rows, self._flushed = self._rows[count:], time.monotonic()


class OrderedRows:
    """Numbered rows in any order, given to windows of one row in the order of their numbers, up to one that lacks."""

    def __init__(self, windows: Windows, first: int) -> None:
        self._windows, self._next = windows, first
        self._waiting: dict[int, Row] = {}

    def put(self, number: int, row: Row) -> None:
        """Take the row of a number; none is given twice."""
        self._waiting[number] = row
        while self._next in self._waiting:
            self._windows.put(self._waiting.pop(self._next))
            self._next += 1
