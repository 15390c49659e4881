"""How soon each command answers a signal that asks it to stop, at a random moment of its run.

`python -m tests.commands.stop_times FOLDER [COMMAND ...]`: by default every command below; each is run once to its end,
or for `ENDLESS` seconds if it would take longer, and again with SIGTERM and SIGINT at random moments of that time.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from eaglepipe.precompute.stage import run_precompute
from eaglepipe.tables import text_table
from tests.tiny_project import TinyProject, make_project

ENDLESS = 25.0
STARTING = 1.0  # seconds in which a process is no command yet
ROOT = Path(__file__).parents[2]


def command_lines(project: TinyProject, cache: Path, folder: Path) -> dict[str, list[str]]:
    """Return each command's arguments; what they write is `folder / "out"` or below it."""
    recipe, out, run = str(project.recipe_file), folder / "out", project.folder / "run"
    rows = ", ".join(f"{{path: {path}}}" for path in project.sources)
    answers = f"regenerate={{sources: [{rows}], output: {out / 'answers.jsonl'}, max_new_tokens: 400, batch_size: 64}}"
    prompts = f"synthesize={{output: {out / 'prompts.jsonl'}, count: 100000, max_draws: 1000000}}"
    longer = ["train.epochs=1000", f"train.output_dir={out / 'run'}"]
    return {
        "precompute": ["precompute", recipe, f"cache.root={out}", "precompute.batch_tokens=512"],
        "precompute, one batch": ["precompute", recipe, f"cache.root={out}", "precompute.batch_tokens=65536"],
        "precompute, own answers": [
            *("precompute", recipe, f"cache.root={out}", "data.generate={max_new_tokens: 200, keep_unfinished: true}"),
        ],
        "train": ["train", recipe, *longer],
        "train, one large step": ["train", recipe, *longer, "train.batch_tokens=16384", "train.ttt_steps=7"],
        "eval": ["eval", str(run)],
        "eval --target": ["eval", str(run), "--target", str(project.target)],
        "report": ["report", str(run)],
        "export": ["export", str(run), "--to", "vllm", "--out", str(out / "draft")],
        "estimate --measure": ["estimate", recipe, "--measure"],
        "data regenerate": ["data", "regenerate", recipe, answers],
        "data synthesize": ["data", "synthesize", recipe, prompts],
        "cache verify --full": ["cache", "verify", str(cache), "--full"],
        "cache diff --values": ["cache", "diff", "--values", str(cache), str(cache)],
        "cache recode": ["cache", "recode", str(out / "recoded"), str(cache), "--aux-codec", "rot4"],
        "bench step": ["bench", "step"],
        "bench read": ["bench", "read", str(cache)],
        "bench precompute": ["bench", "precompute"],
        "demo": ["demo", "--folder", str(out / "demo")],
    }


def run(arguments: list[str], seconds: float, number: int | None) -> tuple[float, int, str]:
    """Run a command, with a signal after some seconds; returns the seconds from then on, its exit code and last line.

    Without a number the seconds are those of the whole run.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "eaglepipe", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        try:
            error = process.communicate(timeout=seconds)[1]
            return time.monotonic() - started, process.returncode, error.strip().rpartition("\n")[2]
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL if number is None else number)
            sent = time.monotonic()
            error = process.communicate()[1]
        ended = seconds if number is None else time.monotonic() - sent
        return ended, process.returncode, error.strip().rpartition("\n")[2]


def main() -> None:
    """Print the times of each command, the longest first in its row."""
    folder, moments = Path(sys.argv[1]), random.Random(0)
    shutil.rmtree(folder, ignore_errors=True)
    project = make_project(folder / "project", rows=200)
    cache = Path(run_precompute(project.recipe(), report=lambda _: None).folder)
    _, code, last = run(["train", str(project.recipe_file), "train.max_steps=8"], 600, None)
    assert code == 0, last
    lines, table = command_lines(project, cache, folder), []
    for name in sys.argv[2:] or lines:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        whole, code, last = run(lines[name], ENDLESS, None)
        found = []
        for number in (signal.SIGTERM, signal.SIGINT):
            shutil.rmtree(out, ignore_errors=True)
            moment = moments.uniform(min(STARTING, whole / 2), whole)
            seconds, code, last = run(lines[name], moment, number)
            found.append(f"{seconds:.1f} ({code}) at {moment:.0f}")
        table.append((name, f"{whole:.0f}", *found, last[:60]))
        print(*table[-1], sep=" | ", flush=True)
    print(text_table({"": "left", "s": "right", "SIGTERM": "right", "SIGINT": "right", "last line": "left"}, table))


if __name__ == "__main__":
    main()
