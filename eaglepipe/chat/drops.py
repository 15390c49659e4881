"""Rows that become no sample: counted by reason, with the first of each, and listed one a line in a stream."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from eaglepipe.chat.faults import FAULTS, Fault
from eaglepipe.errors import DataError, first_line, printable
from eaglepipe.tables import text_table

_DETAIL_CHARACTERS = 1000
_EXAMPLE_CHARACTERS = 160


class DropLog:
    """The drops of a corpus; only counts and one example of each reason are held in memory."""

    def __init__(self, stream: BinaryIO | None = None, counts: Mapping[str, int] | None = None) -> None:
        """Begin a log, or go on with earlier counts; `stream` receives each drop as a line of JSON."""
        self.counts: Counter[str] = Counter(counts or {})
        self.examples: dict[str, str] = {}
        self._stream = stream

    @classmethod
    def resumed(cls, counts: Mapping[str, int], listing: Path) -> "DropLog":
        """Go on with the counts of a plan, and with the first rows of its list if that is there."""
        log = cls(counts=counts)
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError), listing.open(encoding="utf-8") as lines:
            for drop in map(json.loads, lines):  # up to a damaged line: examples only explain
                log.examples.setdefault(drop["reason"], f"{drop['where']}: {drop['detail']}")
        return log

    def add(self, reason: str, *, where: str, source: str, detail: str) -> None:
        """Count and list one row; `detail` may begin with `where`."""
        detail = detail.removeprefix(f"{where}: ")[:_DETAIL_CHARACTERS]
        self.counts[reason] += 1
        self.examples.setdefault(reason, f"{where}: {detail}")
        if self._stream is not None:
            line = {"where": where, "source": source, "reason": reason, "detail": detail}
            self._stream.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def check(self, num_samples: int, max_fraction: float) -> None:
        """Raise if no sample is left, or if more than `max_fraction` of all rows are faulty.

        Raises:
            DataError: with the reasons, their counts and the first row of each.
        """
        num_rows = num_samples + self.counts.total()
        if num_samples == 0:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted((+self.counts).items()))
            raise DataError(f"no sample is left to train on; dropped: {counts or 'none'}\n{self.table(num_rows)}")
        faulty = sum(self.counts[reason] for reason in FAULTS)
        if faulty / num_rows > max_fraction:
            raise DataError(
                f"{faulty:,} of {num_rows:,} rows ({faulty / num_rows:.2%}) cannot be used, and data.max_drop_fraction "
                f"allows {max_fraction:.2%}:\n{self.table(num_rows, FAULTS)}\n"
                "mend these rows, or set a larger data.max_drop_fraction to go on without them"
            )

    def table(self, num_rows: int, reasons: tuple[Fault, ...] | None = None) -> str:
        """Return a line for each reason: rows, share of all rows, and the first of them if it is known."""
        rows = [
            (reason, f"{count:,}", f"{count / num_rows:.2%}", _shortened(self.examples.get(reason, "")))
            for reason, count in self.counts.most_common()
            if count and (reasons is None or reason in reasons)
        ]
        return text_table({"reason": "left", "rows": "right", "share": "right", "first": "left"}, rows, indent=2)


def _shortened(detail: str) -> str:
    line = printable(first_line(Exception(detail))) if detail else ""
    return line if len(line) <= _EXAMPLE_CHARACTERS else f"{line[:_EXAMPLE_CHARACTERS]}…"
