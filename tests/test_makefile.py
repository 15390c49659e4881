"""What `make train` runs: stage 1 exactly where the recipe's own cache is missing, then stage 2."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDER = """#!/bin/sh
if [ "$1 $2" = "cache path" ]; then
  [ -n "$CACHES" ] || exit 2
  printf '%s\\n' $CACHES
else
  echo "$@" >> "$LOG"
fi
"""


@pytest.fixture(name="make")
def make_train(tmp_path: Path):
    """`make train` with an `eaglepipe` that writes down how it is called and finds the caches it is told."""
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "eaglepipe").write_text(RECORDER)
    (binaries / "eaglepipe").chmod(0o755)
    (binaries / "python").touch()
    (binaries.parent / ".installed").touch()

    def run(*caches: Path, settings: str = "") -> tuple[int, list[str]]:
        log = tmp_path / "log"
        log.write_text("")
        environment = {**os.environ, "LOG": str(log), "CACHES": " ".join(map(str, caches))}
        command = ["make", "-C", ROOT, "train", "RECIPE=mine.yaml", f"SET={settings}", f"VENV={binaries.parent}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return done.returncode, log.read_text().splitlines()

    return run


def test_stage_one_runs_first_where_the_recipe_has_no_cache(make) -> None:
    assert make(settings="train.seed=1") == (0, ["precompute mine.yaml train.seed=1", "train mine.yaml train.seed=1"])


def test_a_complete_cache_is_trained_from_at_once(make, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    assert make(tmp_path / "a") == (0, ["train mine.yaml"])
    assert make(tmp_path / "a", tmp_path / "b") == (0, ["train mine.yaml"])


def test_a_cache_that_is_named_and_not_there_starts_no_stage_one(make, tmp_path: Path) -> None:
    code, called = make(tmp_path / "nowhere")
    assert code != 0 and called == []
