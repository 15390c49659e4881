"""Rows of local files, one at a time and each with its place: JSON lines, JSON, parquet and Arrow.

Memory never grows with a file: at most one row, or one record batch, is held.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaglepipe.errors import DataError

PlacedRow = tuple[str, dict[str, Any]]

_BOM = b"\xef\xbb\xbf"
_CHUNK_CHARS = 2**18
_BATCH_ROWS = 256
_WHITESPACE = " \t\r\n"


def file_rows(path: Path) -> Iterator[PlacedRow]:
    """("path:line" or "path row n", row) of one file, in order.

    Raises:
        DataError: unreadable or malformed; the message begins with the place.
    """
    try:
        yield from READERS[path.suffix.lower()](path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(_BOM) if number == 1 else line
            if content.strip():
                where = f"{path}:{number}"
                yield where, _object(content, where)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON that can be read: {error}") from None
    return _checked(row, where)


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: each row is a JSON object, this is a {type(row).__name__}")
    return row


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield from _JsonStream(path, file).rows()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error.reason}") from None


class _JsonStream:
    """Objects of one JSON array, or of objects written one after another, decoded from a window of the file."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.file = path, file
        self.window, self.line, self.ended = "", 1, False
        self.decoder = json.JSONDecoder()

    def rows(self) -> Iterator[PlacedRow]:
        in_array = self._next() == "["
        if in_array:
            self._drop(1)
        first = True
        while (char := self._next()) and char != "]":
            if in_array and not first:
                self._expect_comma(char)
            yield self._row()
            first = False
        if in_array and char != "]":
            raise self._malformed("the array is not closed")
        self._drop(len(char) if in_array else 0)
        if self._next():
            raise self._malformed("data after the last row")

    def _expect_comma(self, char: str) -> None:
        if char != ",":
            raise self._malformed("expected ',' or ']'")
        self._drop(1)
        self._next()

    def _row(self) -> PlacedRow:
        where = f"{self.path}:{self.line}"
        if not self.window.startswith("{"):
            raise DataError(f"{where}: each row is a JSON object, this begins with {self.window[:1]!r}")
        while True:
            try:
                row, end = self.decoder.raw_decode(self.window)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut(error):
                    raise self._malformed(error.msg, error.pos) from None
                self._read(len(self.window))
            except (ValueError, RecursionError) as error:
                raise self._malformed(str(error)) from None
            else:
                self._drop(end)
                return where, _checked(row, where)

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.window) - 16

    def _next(self) -> str:
        """The next character that is not white space, now first in the window; empty at the end."""
        while True:
            stripped = self.window.lstrip(_WHITESPACE)
            self._drop(len(self.window) - len(stripped))
            if self.window or self.ended:
                return self.window[:1]
            self._read(0)

    def _read(self, at_least: int) -> None:
        chunk = self.file.read(max(_CHUNK_CHARS, at_least))
        self.window, self.ended = self.window + chunk, not chunk

    def _drop(self, count: int) -> None:
        self.line += self.window.count("\n", 0, count)
        self.window = self.window[count:]

    def _malformed(self, problem: str, position: int = 0) -> DataError:
        line = self.line + self.window.count("\n", 0, position)
        return DataError(f"{self.path}:{line}: not JSON: {problem}")


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        yield from batch_rows(file.iter_batches(batch_size=_BATCH_ROWS), str(path))


def _arrow_rows(path: Path) -> Iterator[PlacedRow]:
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = pa.ipc.open_stream(source)
        yield from batch_rows(batches, str(path))


def batch_rows(batches: Iterator[Any], place: str) -> Iterator[PlacedRow]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                number += 1
                yield f"{place} row {number}", row


READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
