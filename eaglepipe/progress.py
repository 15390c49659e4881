"""One progress line: a tqdm bar on a terminal, a plain line every few seconds elsewhere, nothing on other ranks."""

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Never

from tqdm import tqdm

PLAIN_INTERVAL_SECONDS = 10.0


class ProgressLine(AbstractContextManager["ProgressLine"]):
    """Counts towards a total that may be unknown."""

    def __init__(
        self,
        description: str,
        *,
        total: int | None,
        unit: str,
        initial: int = 0,
        enabled: bool = True,
        plain_interval_seconds: float = PLAIN_INTERVAL_SECONDS,
    ) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._initial = self._done = initial
        self._enabled, self._interval_seconds = enabled, plain_interval_seconds
        self._fields = ""
        self._started = self._printed = time.monotonic()
        self._bar: tqdm[Never] | None = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(
                desc=description, total=total, unit=unit, initial=initial, dynamic_ncols=True, unit_scale=unit == "tok"
            )

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and kind is None:
            self._print_plain()

    def update(self, count: int, fields: str = "") -> None:
        """Advance by `count`; `fields` is what stands at the end of the line, kept until others are given."""
        self._done += count
        self._fields = fields or self._fields
        if self._bar is not None:
            self._bar.set_postfix_str(self._fields, refresh=False)
            self._bar.update(count)
        elif self._enabled and time.monotonic() - self._printed >= self._interval_seconds:
            self._print_plain()

    def write(self, message: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        elif self._enabled:
            print(message, file=sys.stderr, flush=True)

    def _print_plain(self) -> None:
        self._printed = time.monotonic()
        elapsed = self._printed - self._started
        counted = f"{self._done:,}" if self._total is None else f"{self._done:,}/{self._total:,}"
        parts = [f"{self._description}: {counted} {self._unit}"]
        fresh = self._done - self._initial
        if self._total is not None and fresh > 0 and self._done < self._total:
            parts.append(f"ETA {format_seconds(elapsed * (self._total - self._done) / fresh)}")
        parts += [self._fields] if self._fields else []
        print(" · ".join(parts), file=sys.stderr, flush=True)


def note(message: str) -> None:
    """Print a line for the user beside a command's output."""
    print(message, file=sys.stderr, flush=True)


def format_seconds(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@contextmanager
def without_library_output() -> Iterator[None]:
    """Hide the progress bars and reports of transformers, which would stand between the lines of our own."""
    from transformers.utils import logging  # slow to import, and at hand wherever a model is loaded or saved

    hide, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    if hide:
        logging.disable_progress_bar()
    logging.set_verbosity(max(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if hide:
            logging.enable_progress_bar()
