"""Tasks of this machine: killed ones are started again, failed ones are named with their last words."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from eaglepipe.errors import StoppedError
from eaglepipe.launch.launched import Launch, ending_path, log_path
from eaglepipe.launch.local import LocalExecutor
from eaglepipe.launch.options import TaskOptions
from eaglepipe.launch.supervisor import FailedTasksError, supervise

STAGE = 'for share; do :; done; task="${share%%/*}"; touch "seen-$task-$$"; runs=$(ls | grep -c "^seen-$task-")\n'


def run(folder: Path, stage: str, *, tasks: int = 3, retries: int = 3, at_once: int | None = None) -> list[str]:
    (folder / "stage").write_text(STAGE + stage)
    command = ("sh", str(folder / "stage"))
    launch = Launch(stage="precompute", executor="local", tasks=tasks, command=command, working_folder=str(folder))
    lines: list[str] = []
    limit = at_once or tasks
    executor = LocalExecutor(folder, launch, TaskOptions(), at_once=limit)
    supervise(executor, folder, range(tasks), at_once=limit, retries=retries, report=lines.append)
    return lines


@pytest.mark.parametrize("end", ["kill -KILL $$", "exit 75", "exit 6", "exit 139"])
def test_a_task_that_is_killed_or_stopped_runs_again(end: str, tmp_path: Path) -> None:
    lines = run(tmp_path, f'[ "$share" = 1/3 ] && [ "$runs" = 1 ] && {end}; exit 0')
    assert sum("started again, 1 of 3 times" in line for line in lines) == 1
    assert log_path(tmp_path, 1).read_text().count("--- task 1, attempt") == 2
    assert [ending_path(tmp_path, task).read_text().strip() for task in range(3)] == ["0", "0", "0"]


def test_one_that_is_killed_for_ever_fails_after_its_retries(tmp_path: Path) -> None:
    with pytest.raises(FailedTasksError, match=r"1 task\(s\) failed: 2;") as caught:
        run(tmp_path, '[ "$share" = 2/3 ] && kill -KILL $$; exit 0', retries=1)
    assert caught.value.exit_code == 1
    assert log_path(tmp_path, 2).read_text().count("--- task 2, attempt") == 2


def test_a_failed_task_is_not_run_again_and_its_last_lines_are_the_message(tmp_path: Path) -> None:
    with pytest.raises(FailedTasksError, match="shard 7 is damaged") as caught:
        run(tmp_path, '[ "$share" = 0/3 ] && { echo "error: shard 7 is damaged"; exit 3; }; exit 0')
    assert caught.value.exit_code == 3
    assert ending_path(tmp_path, 1).read_text().strip() == "0"  # the others go on


def test_no_more_than_asked_for_run_at_once(tmp_path: Path) -> None:
    stage = "mkdir running || exit 3; sleep 0.05; rmdir running"
    assert len(run(tmp_path, stage, tasks=4, at_once=1)) == 4


def test_a_signal_is_passed_on_and_nothing_new_is_started(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    with pytest.raises(StoppedError, match="SIGTERM"):
        run(tmp_path, "trap 'exit 75' TERM; touch ready; while :; do sleep 0.02; done", tasks=2, at_once=1)
    assert ending_path(tmp_path, 0).read_text().strip() == "75"
    assert not log_path(tmp_path, 1).exists()
