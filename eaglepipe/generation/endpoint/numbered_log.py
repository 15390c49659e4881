"""A log of answers whose rows come in any order, each with its number in the input."""

import json
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eaglepipe.generation.answer_log import AnswerLog, Row

_FLUSH_SECONDS = 0.5


class NumberedLog(AnswerLog):
    """An `AnswerLog` of numbered rows; those that were put last may not be on the disk yet."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, setting: str) -> None:
        super().__init__(path, settings, 1, setting=setting)
        self.numbers = set(self._places())
        self._waiting: list[Row] = []
        self._flushed = time.monotonic()

    def __exit__(self, *error: object) -> None:
        if not self.numbers:  # what it was begun with binds nobody yet
            self.path.unlink(missing_ok=True)
        super().__exit__(*error)

    def put(self, number: int, row: Row) -> None:
        """Add the outcome of an input row."""
        assert number not in self.numbers, number
        self.numbers.add(number)
        self._waiting.append({"number": number, **row})
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make all rows durable."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.append(waiting)
        self._flushed = time.monotonic()

    def rows(self) -> Iterator[Row]:
        """Yield all rows in input order, without their numbers."""
        places = self._places()
        with self.path.open("rb") as stream:
            for number in sorted(places):
                stream.seek(places[number])
                row = json.loads(stream.readline())
                del row["number"]
                yield row

    def _places(self) -> dict[int, int]:
        """Return where the line of each number begins."""
        places, offsets = array("q"), array("q")
        with self.path.open("rb") as stream:
            stream.readline()
            offset = stream.tell()
            for line in stream:
                places.append(json.loads(line)["number"])
                offsets.append(offset)
                offset += len(line)
        return dict(zip(places, offsets, strict=True))
