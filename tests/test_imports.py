"""What imports pull in, which only a fresh Python shows."""

import json
import subprocess
import sys

import pytest

BENCHMARKS = ("dflash.measure", "memory", "precompute", "read", "step")
PROGRAM = f"""
import json, sys
import eaglepipe.train
of_training = list(sys.modules)
sys.modules["datasets"] = None
from importlib import import_module
for name in {BENCHMARKS}:
    import_module("eaglepipe.bench." + name)
print(json.dumps([of_training, list(sys.modules)]))
"""


@pytest.fixture(scope="module")
def imported() -> list[set[str]]:
    """The modules that training loads, and those that the benchmarks load besides where there is no `datasets`."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [set(modules) for modules in json.loads(done.stdout)]


def test_training_imports_neither_the_target_nor_datasets(imported: list[set[str]]) -> None:
    of_training, _ = imported
    assert "eaglepipe.training.run.loop" in of_training
    forbidden = ("datasets.", "eaglepipe.target.", "eaglepipe.precompute.stage")
    assert not [module for module in of_training if f"{module}.".startswith(forbidden)]


def test_benchmarks_are_imported_without_datasets(imported: list[set[str]]) -> None:
    _, of_both = imported
    assert of_both >= {f"eaglepipe.bench.{name}" for name in BENCHMARKS}
