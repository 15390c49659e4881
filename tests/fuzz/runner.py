"""Runs cases: each prepares its input and runs its commands in forked children, and is judged by the oracle."""

import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from tests.fuzz.base import Base
from tests.fuzz.forked import run_command
from tests.fuzz.oracle import faults_of

SUBJECTS = (
    *("recipes", "rows", "templates", "tokenizers", "targets", "documents", "shards", "cache_folders"),
    *("draft_folders", "runs", "answers", "exports"),
)
Make = Callable[[random.Random, Base, Path], list[list[str]]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of a case, and the faults found in how it ended."""

    subject: str
    number: int
    arguments: tuple[str, ...]
    code: int
    seconds: float
    peak_bytes: int
    faults: tuple[str, ...]
    output: str


def run_case(base: Base, subject: str, number: int, *, seed: int, folder: Path, commands: int = 9) -> list[Step]:
    """Run case `number` of a subject in `folder`, which is made for it, with at most so many of its commands."""
    make: Make = import_module(f"tests.fuzz.subjects.{subject}").make
    rng = random.Random(f"{seed}/{subject}/{number}")
    folder.mkdir(parents=True)
    chosen = make(rng, base, folder)
    steps = []
    for arguments in rng.sample(chosen, commands) if commands < len(chosen) else chosen:
        ended = run_command(arguments, folder)
        steps.append(
            Step(
                subject=subject,
                number=number,
                arguments=tuple(arguments),
                code=ended.code,
                seconds=ended.seconds,
                peak_bytes=ended.peak_bytes,
                faults=tuple(faults_of(ended, folder)),
                output=ended.stdout[-5000:] + ended.stderr[-5000:],
            )
        )
    return steps


def run_cases(
    base: Base, cases: Sequence[tuple[str, int]], *, seed: int, root: Path, workers: int = 1, commands: int = 9
) -> list[Step]:
    """Run cases in forked workers; returns their steps, in the order of the cases."""
    children = []
    for worker in range(workers):
        pid = os.fork()
        if pid == 0:
            _work(base, cases[worker::workers], seed=seed, root=root / f"worker-{worker}", commands=commands)
        children.append(pid)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert not any(ends), f"a worker ended with {ends}"
    lines = [line for worker in range(workers) for line in (root / f"worker-{worker}" / "steps").open()]
    order = {case: position for position, case in enumerate(cases)}
    steps = [Step(**json.loads(line)) for line in lines]
    return sorted(steps, key=lambda step: order[step.subject, step.number])


def _work(base: Base, cases: Sequence[tuple[str, int]], *, seed: int, root: Path, commands: int) -> None:
    """Be a worker: never returns."""
    code = 1
    try:
        root.mkdir(parents=True)
        with (root / "steps").open("w") as stream:
            for subject, number in cases:
                folder = root / f"{subject}-{number}"
                for step in run_case(base, subject, number, seed=seed, folder=folder, commands=commands):
                    stream.write(json.dumps(asdict(step)) + "\n")
                    stream.flush()
                shutil.rmtree(folder)
        code = 0
    except BaseException:  # noqa: BLE001 - a fault of the fuzzer itself
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
