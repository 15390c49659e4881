"""Tasks on a real Ray of this machine: one of two workers is killed, and the cache is that of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.stage_one import cache_in_an_earlier_order, contents, plan_in_an_earlier_order
from tests.tiny_project import TinyProject

SMALL = {"cache.shard_bytes": "100KiB"}
GROUP_TOKENS = 1024  # of a plan of many small shards


def launch(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "eaglepipe", "launch", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def noting_its_worker(folder: Path) -> Path:
    """A command that calls eaglepipe, and at the first start of the second share notes the process of Ray above it."""
    script = folder / "noting"
    noted = folder / "worker"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *" 1/2") [ -e {noted} ] || echo $PPID > {noted};; esac\n'
        f'exec {sys.executable} -m eaglepipe "$@"\n'
    )
    script.chmod(0o755)
    return script


def test_a_killed_worker_is_replaced_and_the_bytes_are_those_of_one_process(
    project: TinyProject, tmp_path: Path
) -> None:
    reference = contents(cache_in_an_earlier_order(project, tmp_path / "one", group_tokens=GROUP_TOKENS, **SMALL))
    root, logs, worker = tmp_path / "many", tmp_path / "logs", tmp_path / "worker"
    settings = {"cache.root": root, **SMALL}
    plan_in_an_earlier_order(project.recipe(**settings), GROUP_TOKENS)
    overrides = [f"{name}={value}" for name, value in settings.items()]
    process = launch(
        *("precompute", project.recipe_file, *overrides, "--on", "ray", "--tasks", 2, "--logs", logs),
        *("--command", noting_its_worker(tmp_path)),
    )
    while not (worker.exists() and worker.read_text().strip()):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.kill(int(worker.read_text()), signal.SIGKILL)
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    assert "task 1: killed by SIGKILL" in output and "started again, 1 of 3 times" in output
    (cache,) = (path for path in root.iterdir() if path.is_dir())
    assert contents(cache) == reference
    told = launch("status", project.recipe_file, *overrides, "--logs", logs, "--json").communicate(timeout=200)[0]
    (status,) = json.loads(told)
    assert status["complete"] and [task["attempts"] for task in status["tasks"]] == [1, 2]
