"""An array of Slurm, some of whose tasks are killed and requeued, leaves the cache of one process."""

import signal
from pathlib import Path

from eaglepipe.cli import app
from eaglepipe.launch.status import status
from tests.launch import fake_slurm
from tests.launch.conftest import Cluster
from tests.launch.waiting import wait_until
from tests.stage_one import cache_in_an_earlier_order, contents, plan_in_an_earlier_order
from tests.tiny_project import TinyProject

TASKS = 8
SMALL = {"cache.shard_bytes": "100KiB"}
GROUP_TOKENS = 1024  # of a plan of many small shards


def launch(*arguments: object) -> None:
    app(["launch", *map(str, arguments)], standalone_mode=False)


def test_tasks_that_are_killed_and_requeued_leave_the_bytes_of_one_process(
    project: TinyProject, cluster: Cluster, tmp_path: Path
) -> None:
    reference = contents(cache_in_an_earlier_order(project, tmp_path / "one", group_tokens=GROUP_TOKENS, **SMALL))
    root, logs = tmp_path / "many", tmp_path / "logs"
    plan_in_an_earlier_order(project.recipe(**{"cache.root": root}, **SMALL), GROUP_TOKENS)
    settings = (f"cache.root={root}", *(f"{name}={value}" for name, value in SMALL.items()))
    shares = {task: f"{task}/{TASKS}" for task in (1, 4, 6)}
    cluster.stalling.update(shares.values())

    launch("precompute", project.recipe_file, *settings, "--tasks", TASKS, "--logs", logs, "--command", cluster.command)
    job = "100"
    for share in shares.values():
        wait_until(lambda share=share: share in cluster.server.children)
        wait_until(lambda share=share: "stalled" in cluster.server.children[share].output())
    told = status(logs / "precompute-0001")
    assert [told.tasks[task].state for task in shares] == ["running"] * 3, told
    assert [told.tasks[task].done for task in shares] == [0, 0, 0]

    fake_slurm.time_limit(job, 1)
    fake_slurm.fail_node(job, 4)
    cluster.server.children[shares[6]].send_signal(signal.SIGKILL)  # the stage alone
    wait_until(lambda: not fake_slurm.job_states(job) & {"PENDING", "RUNNING"})

    told = status(logs / "precompute-0001")
    assert fake_slurm.job_states(job) == {"COMPLETED"} and told.complete, told
    (cache,) = (path for path in root.iterdir() if path.is_dir())
    assert contents(cache) == reference
    assert [task.attempts for task in told.tasks] == [2 if task in shares else 1 for task in range(TASKS)]
