"""The script of a task: what requeues it, what does not, and what `launch status` tells of its end."""

import re
from pathlib import Path

import pytest

from eaglepipe.launch import slurm as slurm_commands
from eaglepipe.launch.launched import Launch, new_folder, record_job, record_launch
from eaglepipe.launch.options import TaskOptions, array_expression
from eaglepipe.launch.start import Request, preview
from eaglepipe.launch.status import cancel, status
from tests.launch import fake_slurm
from tests.launch.waiting import wait_until
from tests.tiny_project import TinyProject

# The stage of each task. The first words that it gets are the stage and its recipe, the last one is its share.
STAGE = """
for share; do :; done
echo "share $share begins"
case "$share" in
  0/*) echo "error: the recipe is wrong"; exit 2 ;;
  1/*) [ -e stopped ] && exit 0; trap 'touch stopped; exit 75' USR1; touch ready-1; while :; do sleep 0.02; done ;;
  2/*) kill -KILL $$ ;;
  3/*) trap 'exit 75' TERM; touch ready-3; while :; do sleep 0.02; done ;;
  *) exit 0 ;;
esac
"""


def submitted(
    project: TinyProject, folder: Path, tasks: int, *, stage: str = "precompute", after: str | None = None
) -> tuple[Path, str]:
    """Submit a launch whose tasks run STAGE in a folder; returns the launch's folder and its job."""
    (folder / "stage").write_text(STAGE)
    launch = Launch(
        stage=stage,
        executor="slurm",
        tasks=tasks,
        command=("sh", str(folder / "stage")),
        working_folder=str(folder),
    )
    place = new_folder(folder / "logs of a 100% (new) run", stage)
    recipe = project.recipe(**{"cache.root": folder / "caches"})
    record_launch(place, launch, recipe)
    options = TaskOptions(retries=2, after=after, partition="gpu", sbatch=("comment=two words", "exclusive"))
    job = slurm_commands.submit(place, slurm_commands.job_script(place, launch, range(tasks), options))
    record_job(place, launch, job)
    return place, job


def has_ended(job: str) -> bool:
    return not fake_slurm.job_states(job) & {"PENDING", "RUNNING"}


@pytest.mark.usefixtures("slurm")
def test_what_requeues_a_task_and_what_is_told_of_its_end(project: TinyProject, tmp_path: Path) -> None:
    place, job = submitted(project, tmp_path, 5)
    _, following = submitted(project, tmp_path, 1, stage="train", after=job)
    wait_until(lambda: (tmp_path / "ready-1").exists() and (tmp_path / "ready-3").exists())
    fake_slurm.time_limit(job, 1)
    wait_until(lambda: fake_slurm.read_state(job, 1)["state"] == "COMPLETED")
    wait_until(lambda: fake_slurm.read_state(job, 2)["state"] == "FAILED")
    running = status(place).tasks[3]
    assert running.state == "running" and running.last_lines == ("share 3/5 begins",)
    assert cancel(project.recipe(**{"cache.root": tmp_path / "caches"}), place.parent) == [job, following]
    wait_until(lambda: has_ended(job) and has_ended(following))

    told = status(place)
    assert [task.state for task in told.tasks] == ["failed", "done", "failed", "failed", "done"]
    assert [task.attempts for task in told.tasks] == [
        1,
        2,
        3,
        1,
        1,
    ]  # the killed one as --retries allows
    assert told.tasks[0].last_lines == ("share 0/5 begins", "error: the recipe is wrong")
    table = told.table()
    assert "task 0: failed with exit code 2" in table and "error: the recipe is wrong" in table
    assert "task 2: killed by SIGKILL" in table


@pytest.mark.usefixtures("slurm")
def test_stage_2_starts_after_an_array_that_succeeds_and_never_after_one_that_does_not(
    project: TinyProject, tmp_path: Path
) -> None:
    (tmp_path / "stopped").touch()  # task 1 ends well
    _, failing = submitted(project, tmp_path, 1)
    _, never = submitted(project, tmp_path, 1, stage="train", after=failing)
    wait_until(lambda: has_ended(never))
    assert fake_slurm.job_states(never) == {"CANCELLED"}
    place, anyhow = submitted(project, tmp_path, 1, stage="train", after=f"afterany:{failing}")
    wait_until(lambda: has_ended(anyhow))
    assert fake_slurm.job_states(anyhow) == {"COMPLETED"}
    assert status(place).tasks[0].state == "done"


def test_every_option_of_a_user_is_a_directive(project: TinyProject, tmp_path: Path) -> None:
    options = TaskOptions(
        gpus="a100:1", cpus=8, mem="64G", time="4:00:00", partition="gpu", account="lab", qos="high", constraint="ib",
        sbatch=("nodes=1", "comment=two words", "exclusive", "job-name=mine"), setup=("module load cuda",), after="17",
        at_once=4,
    )  # fmt: skip
    request = Request(stage="precompute", executor="slurm", tasks=8, options=options, logs=tmp_path)
    script = preview(request, project.recipe(**{"cache.root": tmp_path}))
    directives = set(re.findall(r"^#SBATCH --(.*)$", script, flags=re.MULTILINE))
    assert directives >= {
        "array=0-7%4", "gres=gpu:a100:1", "cpus-per-task=8", "mem=64G", "time=4:00:00", "partition=gpu", "account=lab",
        "qos=high", "constraint=ib", "nodes=1", 'comment="two words"', "exclusive", "job-name=mine", "requeue",
        "signal=B:USR1@120", "dependency=afterok:17", "kill-on-invalid-dep=yes", "open-mode=append",
    }  # fmt: skip
    assert sum(directive.startswith("job-name") for directive in directives) == 1
    assert "\nmodule load cuda\n" in script and '--wait --workers "$task/8"' in script


@pytest.mark.parametrize(
    ("numbers", "at_once", "text"),
    [([0], None, "0"), ([0, 1, 2, 5, 7, 8], None, "0-2,5,7-8"), (range(4), 2, "0-3%2"), ([1, 3], 2, "1,3")],
)
def test_tasks_that_have_nothing_left_are_not_in_the_array(numbers: list[int], at_once: int | None, text: str) -> None:
    assert array_expression(numbers, at_once) == text
