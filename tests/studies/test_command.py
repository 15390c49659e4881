"""The studies run from the repository and are no part of the package."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import start

ROOT = Path(__file__).parents[2]


def run_study(*arguments: str) -> None:
    sys.argv[1:] = arguments
    runpy.run_module("tests.studies", run_name="__main__")


@pytest.mark.parametrize("option", ["codecs", "families"])
def test_missing_demo_is_one_message_with_exit_code_2(option: str, tmp_path: Path) -> None:
    where = [str(tmp_path)] if option == "codecs" else ["--demo", str(tmp_path)]
    done = start(run_study, option, *where).wait()
    assert done.returncode == 2 and "eaglepipe demo" in done.stderr and "Traceback" not in done.stderr


def test_make_study_passes_its_arguments_on(tmp_path: Path) -> None:
    for stamp in ("bin/python", ".installed"):
        (tmp_path / stamp).parent.mkdir(exist_ok=True)
        (tmp_path / stamp).touch()
    command = ["make", "-C", ROOT, "--dry-run", f"VENV={tmp_path}", "study", "ARGS=codecs runs/demo --steps 80"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}/bin/python -m tests.studies codecs runs/demo --steps 80" in planned
