"""Locks of folders, and temporaries of living and of killed writers; every other writer is a real process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eaglepipe.errors import ConfigError
from eaglepipe.files.lock import folder_lock
from eaglepipe.files.publish import leftovers, published_folder, remove_abandoned

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from eaglepipe.files.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""
WRITE_A_FILE = """
import sys, time
from pathlib import Path
from eaglepipe.files.publish import published_file
with published_file(Path(sys.argv[1]) / "shard.arrow") as pending:
    print("ready", flush=True)
    time.sleep(60)
"""
WRITE_A_FOLDER = """
import sys, time
from pathlib import Path
from eaglepipe.files.publish import published_folder
with published_folder(Path(sys.argv[1]) / "draft") as folder:
    print("ready", flush=True)
    time.sleep(60)
"""


@contextmanager
def running(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_second_writer_is_refused_with_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    with running(HOLD_THE_LOCK, tmp_path) as other, pytest.raises(ConfigError) as error, folder_lock(tmp_path):
        pass
    assert f"process {other.pid} on" in str(error.value)


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with running(HOLD_THE_LOCK, tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with folder_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".writer.holder").read_text()
    assert not tmp_path.exists()  # nothing was written into it


@pytest.mark.parametrize("program", [WRITE_A_FILE, WRITE_A_FOLDER], ids=["file", "folder"])
def test_temporaries_stay_while_their_writer_lives_and_go_once_it_was_killed(tmp_path: Path, program: str) -> None:
    with running(program, tmp_path) as other:
        assert len(leftovers(tmp_path)) == 1
        assert remove_abandoned(leftovers(tmp_path)) == []
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert len(remove_abandoned(leftovers(tmp_path))) == 1
    assert leftovers(tmp_path) == []


def test_next_writer_of_a_folder_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    with running(WRITE_A_FOLDER, tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
    with published_folder(tmp_path / "draft") as folder:
        (folder / "config.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]
