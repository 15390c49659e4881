"""What must hold for every command on every input."""

import re
import signal
from pathlib import Path

from eaglepipe.errors import printable
from tests.fuzz.forked import Ended

EXIT_CODES = {0, 2, 3, 4, 6, 75}
PEAK_BYTES = 2 * 2**30
_CONTROLS = re.compile(r".{0,80}[\x00-\x08\x0b-\x1f\x7f-\x9f].{0,80}")
MOST_LINES = 40
MOST_CHARACTERS = 20_000


def faults_of(ended: Ended, folder: Path) -> list[str]:
    """Return what is wrong with the end of a command, one line a fault."""
    faults = []
    if ended.hung:
        faults.append(f"hang: {ended.cpu_seconds:.1f} s computed, {ended.seconds:.1f} s in all")
    elif "Traceback (most recent call last)" in ended.stderr + ended.stdout:
        faults.append(f"traceback: {_last_line(ended.stderr)} ({_place(ended.stderr)})")
    elif ended.code not in EXIT_CODES:
        name = signal.Signals(-ended.code).name if ended.code < 0 else str(ended.code)
        faults.append(f"exit {name}: {_last_line(ended.stderr)}")
    elif ended.code:
        faults += _faults_of_message(ended)
    if found := _CONTROLS.search(ended.stderr + ended.stdout):
        faults.append(f"control characters: {printable(found[0])}")
    if ended.peak_bytes > PEAK_BYTES:
        faults.append(f"peak of {ended.peak_bytes / 2**20:,.0f} MiB")
    faults += [f"forbidden: {event}" for event in ended.events[:3]]
    faults += [f"temporary files left: {', '.join(ended.temporaries[:3])}"] if ended.temporaries else []
    faults += [f"temporary file left: {path.name}" for path in sorted(folder.rglob(".*.tmp"))[:3]]
    return faults


def _faults_of_message(ended: Ended) -> list[str]:
    if not (ended.stderr + ended.stdout).strip():
        return ["fails without a message"]
    if ended.stderr.count("\n") > MOST_LINES or len(ended.stderr + ended.stdout) > MOST_CHARACTERS:
        size = f"{ended.stderr.count(chr(10)):,} lines, {len(ended.stderr + ended.stdout):,} characters"
        return [f"a long message: {size}: {ended.stderr[:200]!r}"]
    return []


def _place(traceback: str) -> str:
    """The innermost frame of ours in a traceback."""
    frames = re.findall(r'File ".*?(eaglepipe/[^"]+)", line (\d+)', traceback)
    return ":".join(frames[-1]) if frames else "no frame of ours"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:300]
