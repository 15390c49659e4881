"""Locks of folders, and temporaries of living and of killed writers; every other writer is a real process."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eaglepipe.errors import ConfigError
from eaglepipe.files.leftovers import leftovers, remove_abandoned
from eaglepipe.files.lock import folder_lock
from eaglepipe.files.publish import published_file, published_folder
from tests.processes import Child, start


def hold_the_lock(folder: Path) -> None:
    with folder_lock(folder):
        ready_and_wait(folder)


def write_a_file(folder: Path) -> None:
    with published_file(folder / "shard.arrow"):
        ready_and_wait(folder)


def write_a_folder(folder: Path) -> None:
    with published_folder(folder / "draft"):
        ready_and_wait(folder)


def ready_and_wait(folder: Path) -> None:
    folder.with_suffix(".ready").touch()
    time.sleep(60)


@contextmanager
def running(function: Callable[[Path], None], folder: Path) -> Iterator[Child]:
    process, ready = start(function, folder), folder.with_suffix(".ready")
    try:
        while not ready.exists():
            assert process.is_running
            time.sleep(0.01)
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        ready.unlink(missing_ok=True)


def test_second_writer_is_refused_with_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    with running(hold_the_lock, tmp_path) as other, pytest.raises(ConfigError) as error, folder_lock(tmp_path):
        pass
    assert f"process {other.pid} on" in str(error.value)


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with running(hold_the_lock, tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with folder_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".writer.holder").read_text()
    assert not tmp_path.exists()  # nothing was written into it


@pytest.mark.parametrize("write", [write_a_file, write_a_folder], ids=["file", "folder"])
def test_temporaries_stay_while_their_writer_lives_and_go_once_it_was_killed(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with running(write, tmp_path) as other:
        assert len(leftovers(tmp_path)) == 1
        assert remove_abandoned(leftovers(tmp_path)) == []
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert len(remove_abandoned(leftovers(tmp_path))) == 1
    assert leftovers(tmp_path) == []


def test_next_writer_of_a_folder_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    with running(write_a_folder, tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with published_folder(tmp_path / "draft") as folder:
        (folder / "config.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]
