"""The output of an engine, kept out of the user's terminal and shown when the engine fails."""

import re
from pathlib import Path

_SHOWN_LINES = 12
_READ_BYTES = 64 * 1024
_PREFIX = re.compile(r"^(\([^)]*\) )?((INFO|WARNING|ERROR|CRITICAL) [0-9-]+ [0-9:]+ \[[^]]*\] ?)?")


def last_lines(path: Path, count: int = _SHOWN_LINES) -> list[str]:
    """Return the last lines of a log that say something, without their prefixes and without vLLM's own advice."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _READ_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [_PREFIX.sub("", line).rstrip() for line in text.splitlines()]
    return [line[:300] for line in lines if line.strip()][-count:]
