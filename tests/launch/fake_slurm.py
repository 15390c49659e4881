"""Slurm's commands on one machine: arrays, dependencies, requeueing, time limits and nodes that fail.

Started as `fake_slurm.py COMMAND ...`, where COMMAND is sbatch, squeue, scancel or scontrol; state lies in $FAKE_SLURM.
A job is run by a process of its own that sbatch leaves behind. Only the standard library, so that it starts at once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STATE = Path(os.environ.get("FAKE_SLURM", "."))
_FLAGS = ("parsable", "requeue", "exclusive")
_POLL_SECONDS = 0.02


def sbatch(arguments: list[str]) -> None:
    script = Path(arguments[-1])
    lines = [line.split(" ", 1)[1] for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    options = dict(parsed(word) for word in [*lines, *arguments[:-1]])
    if options.get("partition") == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed\nsbatch: error: Batch job submission failed")
    STATE.mkdir(exist_ok=True)
    job = str(100 + len(list(STATE.glob("*.job"))))
    array = options.get("array")
    tasks = [None] if array is None else numbers(array.partition("%")[0])
    (STATE / f"{job}.job").write_text(json.dumps({"options": options, "tasks": tasks, "script": script.read_text()}))
    for task in tasks:
        write_state(job, task, "PENDING")
    with (STATE / f"{job}.log").open("wb") as log:
        controller = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, "control", job],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (STATE / f"{job}.pid").write_text(str(controller.pid))
    print(job)


def parsed(word: str) -> tuple[str, str]:
    name, equals, value = word.removeprefix("--").partition("=")
    assert equals or name in _FLAGS, word
    return name, value.strip('"')


def numbers(expression: str) -> list[int | None]:
    ranges = [part.split("-") for part in expression.split(",")]
    return [number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)]


def control(job: str) -> None:
    """Run the tasks of a job to their ends."""
    document = json.loads((STATE / f"{job}.job").read_text())
    options = document["options"]
    script = STATE / f"{job}.sh"
    script.write_text(document["script"])
    if not dependency_holds(options.get("dependency", "")):
        for task in document["tasks"]:
            write_state(job, task, "CANCELLED")
        return
    limit = int(options.get("array", "").partition("%")[2] or len(document["tasks"]))
    waiting, running, restarts = list(document["tasks"]), dict[Any, Any](), dict[Any, int]()
    while waiting or running:
        while waiting and len(running) < limit:
            task = waiting.pop(0)
            if read_state(job, task)["state"] == "PENDING":
                running[task] = start(job, task, options, script, restarts.setdefault(task, 0))
        for task, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[task]
            kill_group(process.pid)  # what a job leaves behind on its node
            requeued = STATE / f"{name(job, task)}.requeue"
            if read_state(job, task)["state"] == "CANCELLED":
                continue
            if requeued.exists() or (process.returncode < 0 and "requeue" in options):  # asked for, or the node failed
                requeued.unlink(missing_ok=True)
                restarts[task] += 1
                write_state(job, task, "PENDING")
                waiting.append(task)
            else:
                write_state(job, task, "FAILED" if process.returncode else "COMPLETED")
        time.sleep(_POLL_SECONDS)


def dependency_holds(dependency: str) -> bool:
    """Wait for the jobs of a dependency; returns whether this one may start."""
    kind, _, others = dependency.partition(":")
    for other in others.split(":") if others else []:
        while (states := job_states(other)) & {"PENDING", "RUNNING"}:
            time.sleep(_POLL_SECONDS)
        if kind == "afterok" and states != {"COMPLETED"}:
            return False
    return True


def start(job: str, task: int | None, options: dict[str, str], script: Path, restart: int) -> "subprocess.Popen[bytes]":
    output = options["output"].replace("%%", "\0").replace("%a", str(task)).replace("\0", "%")
    variables = {"SLURM_JOB_ID": str(int(job) * 1000 + (task or 0)), "SLURM_RESTART_COUNT": str(restart)}
    if task is not None:
        variables |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)}
    else:
        variables["SLURM_JOB_ID"] = job
    with Path(output).open("ab" if options.get("open-mode") == "append" else "wb") as log:
        process = subprocess.Popen(
            ["bash", str(script)],
            cwd=options.get("chdir"),
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    write_state(job, task, "RUNNING", process.pid)
    return process


def squeue(arguments: list[str]) -> None:
    options = dict(parsed(word) for word in arguments if word not in ("--noheader", "--array"))
    job = options["jobs"]
    if not (STATE / f"{job}.job").exists() or not job_states(job) & {"PENDING", "RUNNING"}:
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    for task in json.loads((STATE / f"{job}.job").read_text())["tasks"]:
        state = read_state(job, task)["state"]
        if state in ("PENDING", "RUNNING"):
            reason = "Resources" if state == "PENDING" else "None"
            print(f"{'N/A' if task is None else task}|{state}|{reason}")


def scancel(arguments: list[str]) -> None:
    (job,) = arguments
    for task in json.loads((STATE / f"{job}.job").read_text())["tasks"]:
        state = read_state(job, task)
        if state["state"] in ("PENDING", "RUNNING"):
            write_state(job, task, "CANCELLED", state["pid"])
        if state["state"] == "RUNNING":
            os.killpg(state["pid"], signal.SIGTERM)


def scontrol(arguments: list[str]) -> None:
    requeue, which = arguments
    assert requeue == "requeue"
    (STATE / f"{which}.requeue").touch()


def time_limit(job: str, task: int | None) -> None:
    """Do what Slurm does at the time of --signal=B:USR1@...: signal the batch shell, and it alone."""
    os.kill(read_state(job, task)["pid"], signal.SIGUSR1)


def fail_node(job: str, task: int | None) -> None:
    """End every process of a task at once."""
    kill_group(read_state(job, task)["pid"])


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def name(job: str, task: int | None) -> str:
    return job if task is None else f"{job}_{task}"


def write_state(job: str, task: int | None, state: str, pid: int = 0) -> None:
    path = STATE / f"{name(job, task)}.state"
    path.with_suffix(".new").write_text(json.dumps({"state": state, "pid": pid}))
    path.with_suffix(".new").rename(path)


def read_state(job: str, task: int | None) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((STATE / f"{name(job, task)}.state").read_text())
    return state


def job_states(job: str) -> set[str]:
    tasks = json.loads((STATE / f"{job}.job").read_text())["tasks"]
    return {read_state(job, task)["state"] for task in tasks}


if __name__ == "__main__":
    {"sbatch": sbatch, "squeue": squeue, "scancel": scancel, "scontrol": scontrol}.get(
        sys.argv[1], lambda rest: control(*rest)
    )(sys.argv[2:])
