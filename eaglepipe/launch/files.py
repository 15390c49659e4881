"""The scripts of `pipelines/slurm/`, for those who prefer files; `python -m eaglepipe.launch.files DIR` makes them."""

import sys
from pathlib import Path

from eaglepipe.launch.script import SIGNAL_SECONDS, render

_COMMON = (
    ("open-mode", "append"),
    ("requeue", None),
    ("signal", f"B:USR1@{SIGNAL_SECONDS}"),
    ("gres", "gpu:1"),
    ("cpus-per-task", "8"),
    ("mem", "64G"),
    ("time", "4:00:00"),
)


def slurm_files() -> dict[str, str]:
    """Return the scripts by name."""
    precompute = render(
        [("job-name", "precompute"), ("array", "0-7"), ("output", "precompute-%A-%a.log"), *_COMMON],
        comment=(
            "Stage 1 as an array, whose tasks share the shards of a cache. Plan first, and submit with the same words:",
            "  eaglepipe precompute my.yaml --dry-run",
            "  sbatch --partition gpu pipelines/slurm/precompute.sbatch my.yaml",
            "For another number of tasks, give it twice: --array=0-63 --export=ALL,TASKS=64. Tasks save their work",
            "before the time limit and go back into the queue. `eaglepipe launch precompute` submits such a script.",
        ),
        settings='task=$SLURM_ARRAY_TASK_ID\nlogs=slurm-$SLURM_ARRAY_JOB_ID  # exit codes\nmkdir -p "$logs"\nretries=3',
        command='eaglepipe precompute "$@" --wait --workers "$task/${TASKS:-8}"',
    )
    train = render(
        [("job-name", "train"), ("output", "train-%j.log"), *_COMMON],
        comment=(
            "Stage 2 on one node; it saves its work before the time limit and goes back into the queue:",
            "  sbatch --gres gpu:4 --export=ALL,GPUS=4 pipelines/slurm/train.sbatch my.yaml train.seed=1",
            "After an array of stage 1, by its id: sbatch --dependency=afterok:ID pipelines/slurm/train.sbatch my.yaml",
        ),
        settings='task=0\nlogs=slurm-$SLURM_JOB_ID  # its exit code\nmkdir -p "$logs"\nretries=3',
        command='eaglepipe train "$@" --gpus "${GPUS:-1}"',
    )
    return {"precompute.sbatch": precompute, "train.sbatch": train}


if __name__ == "__main__":
    for name, text in slurm_files().items():
        (Path(sys.argv[1]) / name).write_text(text)
