"""An array of Slurm, some of whose tasks are killed and requeued, leaves the cache of one process."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.launch import fake_slurm
from tests.launch.forked import SOCKET, ForkingServer
from tests.processes import Done, run_eaglepipe
from tests.stage_one import cache_in_an_earlier_order, contents, plan_in_an_earlier_order
from tests.tiny_project import TinyProject

TASKS = 8
SMALL = {"cache.shard_bytes": "100KiB"}
GROUP_TOKENS = 1024  # of a plan of many small shards


@dataclass
class Cluster:
    """A login node, and a server for the processes of tasks; those of the shares in `stalling` stall at first."""

    state: Path
    server: ForkingServer
    stalling: set[str] = field(default_factory=set)

    def launch(self, *arguments: object) -> Done:
        return run_eaglepipe("launch", *arguments, "--command", f"{sys.executable} -S {forked_client()}")

    def run(self, *arguments: object) -> Done:
        return run_eaglepipe("launch", *arguments)


def forked_client() -> Path:
    return Path(__file__).with_name("forked.py")


def stall() -> None:
    """Let the first forward of this process take for ever."""
    from eaglepipe.precompute.shard_run import ShardRun

    def forward(*_: object) -> None:
        print("stalled", flush=True)
        time.sleep(600)

    ShardRun._encoded = forward  # type: ignore[assignment, method-assign]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    binaries, state = tmp_path / "bin", tmp_path / "slurm"
    binaries.mkdir()
    for command in ("sbatch", "squeue", "scancel", "scontrol"):
        script = binaries / command
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake_slurm.__file__} {command} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setattr(fake_slurm, "STATE", state)
    stalling: set[str] = set()

    def before(arguments: list[str]) -> Callable[[], object] | None:
        if arguments[-1] not in stalling:
            return None
        stalling.discard(arguments[-1])  # at its first start alone
        return stall

    server = ForkingServer(tmp_path / "socket", before)
    for name, value in (
        ("PATH", f"{binaries}:{os.environ['PATH']}"),
        ("FAKE_SLURM", str(state)),
        (SOCKET, str(tmp_path / "socket")),
    ):
        monkeypatch.setenv(name, value)
    yield Cluster(state=state, server=server, stalling=stalling)
    server.close()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing has come of it"
        time.sleep(0.02)


def test_tasks_that_are_killed_and_requeued_leave_the_bytes_of_one_process(
    project: TinyProject, cluster: Cluster, tmp_path: Path
) -> None:
    reference = contents(cache_in_an_earlier_order(project, tmp_path / "one", group_tokens=GROUP_TOKENS, **SMALL))
    root, logs = tmp_path / "many", tmp_path / "logs"
    plan_in_an_earlier_order(project.recipe(**{"cache.root": root}, **SMALL), GROUP_TOKENS)
    settings = (f"cache.root={root}", *(f"{name}={value}" for name, value in SMALL.items()))
    shares = {task: f"{task}/{TASKS}" for task in (1, 4, 6)}
    cluster.stalling.update(shares.values())

    done = cluster.launch("precompute", project.recipe_file, *settings, "--tasks", TASKS, "--logs", logs)
    assert done.returncode == 0, done.stderr
    job = "100"
    for share in shares.values():
        wait_until(lambda share=share: share in cluster.server.children)
        wait_until(lambda share=share: "stalled" in cluster.server.children[share].output())
    told = cluster.run("status", project.recipe_file, *settings, "--logs", logs).stdout
    assert "1  running" in told and "0/1" in told, told

    fake_slurm.time_limit(job, 1)
    fake_slurm.fail_node(job, 4)
    cluster.server.children[shares[6]].send_signal(signal.SIGKILL)  # the stage alone
    wait_until(lambda: not fake_slurm.job_states(job) & {"PENDING", "RUNNING"})

    told = cluster.run("status", project.recipe_file, *settings, "--logs", logs).stdout
    assert fake_slurm.job_states(job) == {"COMPLETED"}, told
    (cache,) = (path for path in root.iterdir() if path.is_dir())
    assert contents(cache) == reference
    attempts = [(logs / "precompute-0001" / f"task-{task}.log").read_text().count("--- job") for task in range(TASKS)]
    assert attempts == [2 if task in shares else 1 for task in range(TASKS)]
