"""A whole run: the base, the cases of every subject in turn, and what was found."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.base import Base, make_base
from tests.fuzz.report import failures_text, table_text
from tests.fuzz.runner import SUBJECTS, run_case, run_cases


def run_session(
    *, cases: int, seed: int = 0, subjects: Sequence[str] = SUBJECTS, workers: int = 2, commands: int = 9
) -> bool:
    """Run so many cases, each with at most so many of its commands; print a table. True if nothing was found."""
    import tests.preloaded  # noqa: F401 - before the first fork

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        base, started = make_base(Path(folder) / "base"), time.monotonic()
        chosen = [(subjects[number % len(subjects)], number // len(subjects)) for number in range(cases)]
        steps = run_cases(base, chosen, seed=seed, root=Path(folder), workers=workers, commands=commands)
        if failures := failures_text(steps, seed):
            print(failures, end="\n\n")
        print(table_text(steps))
        print(f"{cases} cases, seed {seed}, {workers} workers, {time.monotonic() - started:,.0f} s")
    return not failures


def show_case(subject: str, number: int, *, seed: int) -> bool:
    """Run one case, print all of it, and keep its input. True if nothing was found."""
    import tests.preloaded  # noqa: F401 - before the first fork

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    base: Base = make_base(folder / "base")
    steps = run_case(base, subject, number, seed=seed, folder=folder / "case")
    for step in steps:
        print(f"$ eaglepipe {' '.join(step.arguments)}\n{step.output}")
        print(f"exit {step.code}, {step.seconds:.1f} s, {step.peak_bytes / 1e6:,.0f} MB")
        print("".join(f"FAULT {fault}\n" for fault in step.faults))
    print(f"input: {folder / 'case'}")
    return not any(step.faults for step in steps)
