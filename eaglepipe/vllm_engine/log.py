"""The output of an engine, kept out of the user's terminal and shown when the engine fails."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_SHOWN_LINES = 12
_SHOWN_CHARACTERS = 300
_READ_BYTES = 64 * 1024
_PREFIX = re.compile(r"^(\([^)]*\) )?((INFO|WARNING|ERROR|CRITICAL) [0-9-]+ [0-9:]+ \[[^]]*\] ?)?")


def last_lines(path: Path, count: int = _SHOWN_LINES) -> list[str]:
    """Return the last lines of a log that say something, without their prefixes; of a traceback only its error."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _READ_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = _without_tracebacks(_PREFIX.sub("", line).rstrip() for line in text.splitlines())
    return [line[:_SHOWN_CHARACTERS] for line in lines if line.strip()][-count:]


def _without_tracebacks(lines: Iterable[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        inside = line.startswith("Traceback (") or (inside and (line.startswith(" ") or not line))
        if not inside:
            yield line
