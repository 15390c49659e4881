"""Tasks that this process starts and starts again, a few at a time, until each has done its share or failed."""

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from eaglepipe.errors import EXIT_BUG, EXIT_STOPPED, EXIT_TRY_AGAIN, EaglepipeError
from eaglepipe.files.publish import publish_bytes
from eaglepipe.launch.launched import ending_path, log_path
from eaglepipe.signals import StopFlag, stop_on_signals

LAST_LINES = 4
_HIGHEST_OWN_CODE = 6


class Executor(Protocol):
    """Processes somewhere."""

    def start(self, task: int, attempt: int) -> None:
        """Start a task, whose output is added to its log."""

    def ended(self) -> list[tuple[int, int]]:
        """Wait a moment; returns the tasks that ended, each with its exit code, or minus the signal that ended it."""

    def stop(self) -> None:
        """Ask all tasks to save their work and end."""


class FailedTasksError(EaglepipeError):
    """Tasks that failed for good; ends with the exit code of the first."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code if 0 < code <= _HIGHEST_OWN_CODE else EXIT_BUG


def supervise(
    executor: Executor,
    folder: Path,
    tasks: Sequence[int],
    *,
    at_once: int,
    retries: int,
    report: Callable[[str], None],
) -> None:
    """Run tasks to their ends.

    A task that was killed, stopped by somebody else or that the Hub did not answer is started again, `retries` times.

    Raises:
        FailedTasksError: tasks failed; names them with the last lines that they printed.
        StoppedError: a signal stopped this process, which passed it on and waited for the tasks.
    """
    waiting, failed = list(tasks), dict[int, int]()
    running, deaths, attempts = set[int](), Counter[int](), Counter[int]()
    with stop_on_signals() as stop:
        while running or (waiting and not stop):
            while waiting and len(running) < at_once and not stop:
                task = waiting.pop(0)
                attempts[task] += 1
                ending_path(folder, task).unlink(missing_ok=True)
                executor.start(task, attempts[task])
                running.add(task)
            for task, code in _ended(executor, stop):
                running.discard(task)
                publish_bytes(ending_path(folder, task), f"{code}\n".encode(), tidy=False)
                if code == 0:
                    report(f"task {task}: done")
                    continue
                deaths[task] += 1
                if not stop and may_pass(code) and deaths[task] <= retries:
                    report(f"task {task}: {describe(code)}; started again, {deaths[task]} of {retries} times")
                    waiting.append(task)
                elif not (stop and code == EXIT_STOPPED):
                    report(f"task {task}: {describe(code)}")
                    failed[task] = code
        stop.raise_if_set(f"what the tasks published stays, their logs are in {folder}")
    if failed:
        raise FailedTasksError(_failures(folder, failed), next(iter(failed.values())))


def _ended(executor: Executor, stop: StopFlag) -> list[tuple[int, int]]:
    if stop:
        executor.stop()
    return executor.ended()


def may_pass(code: int) -> bool:
    """Return whether a task that ended so may do better if it is started again."""
    return code < 0 or code > 128 or code in (EXIT_STOPPED, EXIT_TRY_AGAIN)


def describe(code: int) -> str:
    """Return in words how a task ended."""
    number = -code if code < 0 else code - 128
    if number > 0:
        with suppress(ValueError):
            hint = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
            return f"killed by {signal.Signals(number).name}{hint}"
    if code == EXIT_STOPPED:
        return "stopped by a signal, with everything saved"
    return f"failed with exit code {code}"


def _failures(folder: Path, failed: dict[int, int]) -> str:
    named = ", ".join(map(str, sorted(failed)[:8]))
    more = f" and {len(failed) - 8} more" if len(failed) > 8 else ""
    first = min(failed)
    lines = [f"  {line}" for line in last_lines(log_path(folder, first))]
    said = "\n".join([f"; the last lines of task {first}, of {log_path(folder, first)}:", *lines]) if lines else ""
    return f"{len(failed)} task(s) failed: {named}{more}; what is published stays, mend it and launch again{said}"


def last_lines(log: Path, count: int = LAST_LINES) -> list[str]:
    """Return the last lines of a log that say something; of a line that was drawn over, what was drawn last."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - 65536, 0))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith("--- ")][-count:]
