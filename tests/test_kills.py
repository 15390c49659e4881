"""Every writing command killed at random moments: run again, it leaves the bytes of a run that was never killed."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from eaglepipe.files.leftovers import leftovers
from eaglepipe.training.run.metrics import read_metrics
from tests.cache.derived import few, make_cache
from tests.generation.talkative_target import save_talkative_target
from tests.processes import Child, run_eaglepipe, start_eaglepipe
from tests.tiny_project import TinyProject

KILLS = 12  # of each command


STEPS = {"train.max_steps": 12, "train.checkpoint_every_steps": 2, "train.eval_every_steps": 4}
ALL_TOKENS = {"vocab.draft_size": 320}  # caches of one draft vocabulary, which can be merged
ANSWERS = {"regenerate.max_new_tokens": 24, "regenerate.batch_size": 1}


@dataclass(frozen=True)
class Command:
    """A command line for an output folder, and the part of its output that does not tell the time."""

    arguments: Callable[[Path], tuple[object, ...]]
    content: Callable[[Path], object]


def every_byte(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def trained(folder: Path) -> object:
    """Names of all files, the losses, and every tensor; what is left out tells the time."""
    run = next(folder.iterdir())
    tensors = {path: load_file(run / path) for path in sorted(names(run)) if path.endswith(".safetensors")}
    losses = [(row.get("step"), row.get("loss")) for row in read_metrics(run / "metrics.jsonl")]
    return names(run), losses, {path: {k: t.tobytes() for k, t in file.items()} for path, file in tensors.items()}


def answered(folder: Path) -> object:
    """All files; the report without seconds and place."""
    files = every_byte(folder)
    report = json.loads(files.pop("answers.jsonl.report.json"))
    return files, {**report, "result": {**report["result"], "seconds": 0, "output": ""}}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def commands(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    recipe, root = project.recipe_file, tmp_path_factory.mktemp("sources")
    corpus = few(project)
    whole = make_cache(project, root, **corpus)
    sources = json.loads(corpus["data.sources"])
    parts = [
        make_cache(project, root / str(number), **corpus | {"data.sources": json.dumps([source]), **ALL_TOKENS})
        for number, source in enumerate(sources)
    ]
    talker = root / "talker"
    save_talkative_target(project.target, talker)
    small = overrides(corpus)
    answers = overrides({"target.path": talker, "regenerate.sources": corpus["data.sources"], **ANSWERS})
    found = f"cache.root={root}"
    run_eaglepipe("recipe", "ls")  # the first child waits for the server, which no duration may contain
    return {
        "precompute": Command(lambda out: ("precompute", recipe, *small, f"cache.root={out}"), every_byte),
        "train": Command(
            lambda out: ("train", recipe, *small, *overrides(STEPS), found, f"train.output_dir={out / 'run'}"), trained
        ),
        "recode": Command(lambda out: ("cache", "recode", out / "cache", whole, "--aux-codec", "int8"), every_byte),
        "merge": Command(lambda out: ("cache", "merge", out / "cache", *parts), every_byte),
        "regenerate": Command(
            lambda out: ("data", "regenerate", recipe, *answers, f"regenerate.output={out / 'answers.jsonl'}"),
            answered,
        ),
    }


def overrides(settings: dict[str, object]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]


@pytest.mark.parametrize("name", ["precompute", "train", "recode", "merge", "regenerate"])
def test_killed_at_random_moments_and_run_again_it_leaves_equal_bytes(
    commands: dict[str, Command], tmp_path: Path, name: str
) -> None:
    command, moments = commands[name], random.Random(name)
    started = time.monotonic()
    done = run_eaglepipe(*command.arguments(tmp_path / "reference"))
    assert done.returncode == 0, done.stderr
    duration = time.monotonic() - started
    reference, out = command.content(tmp_path / "reference"), tmp_path / "killed"
    kills = 0
    while kills < KILLS:
        killed = killed_after(start_eaglepipe(*command.arguments(out)), moments.uniform(0, duration))
        kills += killed
        if not killed:
            assert command.content(out) == reference
            shutil.rmtree(out)
    done = run_eaglepipe(*command.arguments(out))
    assert done.returncode == 0, done.stderr
    assert command.content(out) == reference
    assert leftovers(out) == []


def killed_after(child: Child, seconds: float) -> bool:
    """Kill a child after a time; False if it had ended by then, with success."""
    deadline = time.monotonic() + seconds
    while child.is_running and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    done = child.wait()
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0
