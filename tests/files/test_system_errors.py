"""A file that the system does not give is explained by its cause, and is never called damaged."""

import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.chat.readers import file_rows
from eaglepipe.errors import CorruptError, DataError, EaglepipeError, ResourceError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.system_errors import uncaught_error
from eaglepipe.files.tensors import load_tensors
from eaglepipe.recipe.yaml_file import read_yaml
from tests.processes import run_eaglepipe, start
from tests.system_faults import FAILING_FILE, no_more_files, obey_permissions

READERS: dict[str, Callable[[Path], object]] = {
    "hash": hash_file,
    "json": read_json_object,
    "tensors": load_tensors,
    "recipe": read_yaml,
    "rows": lambda path: list(file_rows(path)),
}


def files_in(folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("{}")
    return path


@pytest.mark.parametrize("name", READERS)
def test_too_many_open_files_is_a_resource_error_that_names_the_limit(name: str, tmp_path: Path) -> None:
    path = files_in(tmp_path)
    with no_more_files(), pytest.raises(ResourceError, match=r"too many open files \(limit 3\).*ulimit -n"):
        READERS[name](path)


@pytest.mark.parametrize("name", READERS)
def test_a_loop_of_links_and_a_long_name_are_the_users_mistake(name: str, tmp_path: Path) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("n" * 300 + ".jsonl"), tmp_path / ("d/" * 3000 + "x.jsonl")):
        with pytest.raises(EaglepipeError) as raised:
            READERS[name](path)
        assert raised.value.exit_code == 2 and str(path) in str(raised.value)


def test_absent_files_are_what_their_reader_calls_them(tmp_path: Path) -> None:
    below_a_file = files_in(tmp_path) / "x.jsonl"
    with pytest.raises(CorruptError, match="not a directory"):
        read_json_object(below_a_file)
    with pytest.raises(DataError, match="no such file"):
        READERS["rows"](tmp_path / "y.jsonl")


def test_a_disk_that_fails_is_damage_that_names_the_file(tmp_path: Path) -> None:
    link = tmp_path / "broken.jsonl"
    link.symlink_to(FAILING_FILE)
    for name in ("hash", "json", "recipe", "rows"):
        with pytest.raises(CorruptError, match=r"broken\.jsonl: its disk cannot read it \(input/output error\)"):
            READERS[name](link)


def _is_refused_everywhere(path: Path) -> None:
    obey_permissions()
    for read in READERS.values():
        with pytest.raises(EaglepipeError, match=r"permission denied") as raised:
            read(path)
        assert raised.value.exit_code == 2


def test_a_file_without_permission_is_the_users_mistake(tmp_path: Path) -> None:
    path = files_in(tmp_path)
    path.chmod(0)
    assert start(_is_refused_everywhere, path).wait().returncode == 0


def test_a_shard_is_not_called_damaged_because_files_run_out(cache_copy: Path) -> None:
    cache = Cache.open(cache_copy)
    with no_more_files(), pytest.raises(ResourceError, match="too many open files"):
        cache.read(0)
    cache.read(0)


def test_errors_that_nothing_explained_are_explained_at_the_command_line(tmp_path: Path) -> None:
    for error, exit_code in {
        RuntimeError("can't start new thread"): 4,
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"): 4,
        OSError(errno.EMFILE, "Too many open files", "a"): 4,
        Exception("Too many open files (os error 24)"): 4,
        OSError(errno.ENAMETOOLONG, "File name too long", "a"): 2,
        FileNotFoundError(errno.ENOENT, "No such file", b"a"): 2,
    }.items():
        explained = uncaught_error(error)
        assert explained is not None and explained.exit_code == exit_code, error
    assert uncaught_error(ValueError("a mistake in the program")) is None


def test_threads_that_cannot_be_started_end_a_command_with_exit_code_4(tmp_path: Path) -> None:
    no_room = partial(threading.stack_size, 2**46)  # of a thread, so that the system refuses every one
    done = run_eaglepipe("recipe", "ls", before=no_room)
    assert done.returncode == 4 and done.stdout == ""
    assert "no more threads or processes" in done.stderr and done.stderr.count("\n") == 1


def test_a_path_of_5000_characters_is_one_short_line_with_exit_code_2(tmp_path: Path) -> None:
    long = "x" * 5000
    for words in (["train", f"{long}.yaml"], ["cache", "info", long], ["cache", "ls", long], ["eval", long]):
        done = run_eaglepipe(*words)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert len(done.stderr) < 1000, words
