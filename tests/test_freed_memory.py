"""Large blocks that are freed and asked for again cost no page faults."""

import os
import resource

import numpy as np
import pytest

from eaglepipe.freed_memory import KEEPING, keep_freed_memory
from eaglepipe.vllm_engine.arguments import engine_environment
from tests.processes import start

BLOCK, ROUNDS = 24 * 2**20, 20


def count_faults(keep: bool) -> None:
    """Print the page faults of blocks that are filled and freed, without the first ones."""
    if keep:
        keep_freed_memory()
    before = 0
    for number in range(ROUNDS + 2):
        if number == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [np.ones(BLOCK, np.uint8) for _ in range(3)]
        del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


def faults(*, keep: bool, **environment: str) -> int:
    done = start(count_faults, keep, **environment).wait()
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_kept_memory_is_not_asked_of_the_system_again() -> None:
    pages = ROUNDS * 3 * BLOCK // os.sysconf("SC_PAGE_SIZE")
    assert faults(keep=True) < pages / 100
    assert faults(keep=False) > 10 * faults(keep=True) + 100, "the blocks would not show memory that is given back"


def test_environment_of_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(keep=True, MALLOC_TRIM_THRESHOLD_="131072") > 100
    name = "MALLOC_TRIM_THRESHOLD_"
    assert engine_environment({}, "auto")[name] == KEEPING[name]
    monkeypatch.setenv(name, "131072")
    assert engine_environment({}, "auto")[name] == "131072"
