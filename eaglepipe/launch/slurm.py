"""Slurm, through its own commands."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eaglepipe.errors import ConfigError, EaglepipeError, ResourceError
from eaglepipe.files.publish import publish_bytes
from eaglepipe.launch.launched import Launch
from eaglepipe.launch.options import TaskOptions, array_expression
from eaglepipe.launch.script import SIGNAL_SECONDS, quoted, render

SCRIPT = "job.sbatch"
_TIMEOUT_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """What Slurm says of a task: a state such as PENDING, and the reason for it, if any."""

    state: str
    reason: str = ""


def job_script(folder: Path, launch: Launch, numbers: Sequence[int], options: TaskOptions) -> str:
    """Return the script of a launch, for the tasks of these numbers."""
    is_array = launch.stage == "precompute"
    pattern = str(folder).replace("%", "%%")
    directives: list[tuple[str, str | None]] = [
        ("job-name", f"eaglepipe-{launch.stage}"),
        ("output", _quoted(f"{pattern}/task-{'%a' if is_array else '0'}.log")),
        ("open-mode", "append"),
        ("requeue", None),
        ("signal", f"B:USR1@{SIGNAL_SECONDS}"),
        ("chdir", _quoted(launch.working_folder)),
    ]
    if is_array:
        directives.insert(1, ("array", array_expression(numbers, options.at_once)))
    if options.after is not None:
        after = options.after if ":" in options.after else f"afterok:{options.after}"
        directives += [("dependency", after), ("kill-on-invalid-dep", "yes")]
    own = [(name, _quoted(value)) for name, value in options.directives()]
    settings = [
        f"task={'$SLURM_ARRAY_TASK_ID' if is_array else '0'}",
        f"logs={shlex.quote(str(folder))}",
        f"retries={options.retries}",
        *options.setup,
    ]
    return render(
        list(dict([*directives, *own]).items()),  # of a name that comes twice, the user's value
        comment=[f"eaglepipe {launch.stage}, {launch.tasks} task(s): sbatch {SCRIPT} submits it again."],
        settings="\n".join(settings),
        command=quoted(launch.task_command(folder, "$task")),
    )


def submit(folder: Path, script: str) -> str:
    """Leave the script in the folder and submit it; returns the job's id.

    Raises:
        EaglepipeError: there is no sbatch, or it refuses the script.
    """
    path = folder / SCRIPT
    publish_bytes(path, script.encode())
    answer = _call(["sbatch", "--parsable", str(path)]).strip()
    job = answer.splitlines()[-1].partition(";")[0] if answer else ""
    if not job.isdecimal():
        raise EaglepipeError(f"sbatch answered {answer!r} instead of a job's id; the script is {path}")
    return job


def require_sbatch() -> None:
    """Check that Slurm's commands are on this machine.

    Raises:
        ConfigError: they are not.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "--on slurm: no sbatch on PATH; run this on a login node of the cluster, or print the script with --dry-run"
        )


def task_states(job: str) -> dict[int, TaskState]:
    """Return the tasks of a job that Slurm still has in its queue, by number; a job that is no array has number 0."""
    try:
        text = _call(["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%K|%T|%r"])
    except EaglepipeError as error:
        if "Invalid job id" in str(error):  # it has left the queue
            return {}
        raise
    states = {}
    for line in text.splitlines():
        number, state, reason = [*line.strip().split("|"), "", ""][:3]
        states[int(number) if number.isdecimal() else 0] = TaskState(
            state=state, reason="" if reason in ("None", "") else reason
        )
    return states


def ended_states(job: str) -> dict[int, str]:
    """Return what Slurm's accounting knows of tasks, by number, such as OUT_OF_MEMORY; empty without accounting."""
    if shutil.which("sacct") is None:
        return {}
    try:
        text = _call(["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=JobID,State"])
    except EaglepipeError:
        return {}
    found = (re.match(r"\d+(?:_(\d+))?\|(\w+)", line) for line in text.splitlines())
    return {int(match[1] or 0): match[2] for match in found if match is not None}


def cancel(job: str) -> None:
    """Cancel a job with all its tasks."""
    _call(["scancel", job])


def _call(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except FileNotFoundError:
        raise ConfigError(f"no {command[0]} on PATH; run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise ResourceError(f"{command[0]} gave no answer in {_TIMEOUT_SECONDS} s; try again") from None
    if done.returncode:
        message = " / ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}"
        raise EaglepipeError(f"{command[0]} failed: {message}")
    return done.stdout


def _quoted(value: str | None) -> str | None:
    """Return a value of a directive, in quotes if Slurm would cut it at a space or a hash."""
    return f'"{value}"' if value is not None and re.search(r"[\s#]", value) else value
