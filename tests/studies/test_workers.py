"""Pieces of a measurement in other processes: all results under their keys, and nothing begun after an error."""

import os
from functools import partial
from pathlib import Path

import pytest

from eaglepipe.errors import CacheError
from tests.studies.workers import Workers


def fail() -> None:
    raise CacheError("no such cache")


def leave_a_trace(path: Path) -> None:
    path.touch()


def test_results_come_under_their_keys_from_other_processes_and_an_error_begins_nothing_more(tmp_path: Path) -> None:
    with Workers(1) as workers:
        found = workers.all("powers", {number: partial(pow, number, 2) for number in (3, 1, 2)})
        assert list(found.items()) == [(3, 9), (1, 1), (2, 4)]
        assert workers.all("ids", {"id": os.getpid})["id"] != os.getpid()
        begun = tmp_path / "begun"
        with pytest.raises(CacheError, match="no such cache"):
            workers.all("failing", {"bad": fail, "after": partial(leave_a_trace, begun)})
    assert not begun.exists()
