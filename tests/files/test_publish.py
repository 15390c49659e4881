"""A published file is there whole or not at all."""

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eaglepipe.errors import EaglepipeError, ResourceError
from eaglepipe.files.leftovers import leftovers
from eaglepipe.files.publish import PendingFile, publish_bytes, published_folder, put_if_absent, remove_folder


def test_nothing_appears_before_publish(tmp_path: Path) -> None:
    pending = PendingFile(tmp_path / "a.bin")
    pending.stream.write(b"half")
    assert not (tmp_path / "a.bin").exists()
    pending.publish()
    assert (tmp_path / "a.bin").read_bytes() == b"half"
    assert leftovers(tmp_path) == []


def test_failed_check_publishes_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "a.bin", b"old")
    pending = PendingFile(tmp_path / "a.bin")
    pending.stream.write(b"new")

    def check(path: Path) -> None:
        raise ValueError(path.read_bytes())

    with pytest.raises(ValueError, match="new"):
        pending.publish(check)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_file_size_limit_of_the_system_is_a_resource_error_naming_the_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ResourceError, match=r"big\.bin.*file size limit \(4,096 bytes\).*ulimit -f"):
            publish_bytes(tmp_path / "big.bin", bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EaglepipeError, match=r"a\.bin: cannot be written"):
        publish_bytes(tmp_path / "file" / "a.bin", b"x")


def test_one_of_many_writers_puts_the_file(tmp_path: Path) -> None:
    path, won = tmp_path / "plan.json", []
    threads = [
        threading.Thread(target=lambda i=i: won.append(i) if put_if_absent(path, str(i).encode()) else None)
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert path.read_bytes() == str(won[0]).encode()
    assert leftovers(tmp_path) == []


def test_killed_writer_leaves_only_a_temporary_file(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from eaglepipe.files.publish import PendingFile\n"
        "p = PendingFile(Path(sys.argv[1]) / 'a.bin'); p.stream.write(b'x' * 100000); p.stream.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.bin").exists()
    assert len(leftovers(tmp_path)) == 1


def test_folder_takes_the_place_of_the_old_one_only_when_its_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with published_folder(path) as folder:
        publish_bytes(folder / "old", b"1")
        assert not path.exists()
    with pytest.raises(ValueError, match="half"), published_folder(path) as folder:
        publish_bytes(folder / "new", b"2")
        raise ValueError("half")
    assert [file.name for file in path.iterdir()] == ["old"]
    with published_folder(path) as folder:
        publish_bytes(folder / "new", b"2")
        assert (path / "old").exists()
    assert [file.name for file in path.iterdir()] == ["new"]
    assert leftovers(tmp_path) == []
    remove_folder(path)
    assert list(tmp_path.iterdir()) == []


def test_killed_while_filling_a_folder_the_old_one_stays(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from eaglepipe.files.publish import published_folder\n"
        "with published_folder(Path(sys.argv[1]) / 'folder') as folder:\n"
        "    (folder / 'new').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    publish_bytes(tmp_path / "folder" / "old", b"1")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["old"]
    assert [path.name[:8] for path in leftovers(tmp_path)] == [".folder."]
