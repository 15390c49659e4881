"""One command line in a forked child of a process that has imported everything: watched, limited, ended in time."""

import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.watch import watch

CPU_SECONDS = 10
WALL_SECONDS = 60  # for a child that waits: a busy machine makes no hang
_ADDRESS_BYTES = 12 * 2**30
_FILE_BYTES = 2**30
_OUTPUT = ".child"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """End of a child; `code` is minus the signal if one ended it, `events` are acts that no command may commit."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stdout: str
    stderr: str
    events: tuple[str, ...]
    temporaries: tuple[str, ...]

    @property
    def hung(self) -> bool:
        """Whether it computed, or waited, for too long."""
        return self.code in (-signal.SIGXCPU, -signal.SIGKILL) or self.cpu_seconds > CPU_SECONDS


def run_command(arguments: Sequence[str], folder: Path) -> Ended:
    """Run `eaglepipe` with these arguments inside `folder`, the only place where it may write."""
    return run_forked(lambda: _command_line(arguments), folder)


def run_forked(function: Callable[[], object], folder: Path) -> Ended:
    """Call a function in a forked child; its current, home and temporary folders lie in `folder`."""
    output = folder / _OUTPUT
    shutil.rmtree(output, ignore_errors=True)
    for name in ("home", "tmp"):
        (output / name).mkdir(parents=True)
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(function, folder, output)
    descriptor = os.pidfd_open(pid)
    if not select.select([descriptor], [], [], WALL_SECONDS)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(descriptor)
    _, status, usage = os.wait4(pid, 0)
    texts = [(output / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout", "stderr", "events")]
    return Ended(
        code=os.waitstatus_to_exitcode(status),
        seconds=time.monotonic() - started,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
        stdout=texts[0],
        stderr=texts[1],
        events=tuple(texts[2].splitlines()),
        temporaries=tuple(sorted(path.name for path in (output / "tmp").iterdir())),
    )


def _child(function: Callable[[], object], folder: Path, output: Path) -> None:
    """Be the child: never returns."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr"), (3, "events")):
            os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as a fresh interpreter has them
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        os.chdir(folder)
        os.environ |= {"HOME": str(output / "home"), "TMPDIR": str(output / "tmp")}
        tempfile.tempdir = None
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
        watch(folder, 3)
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does with whatever nobody caught
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with_errors = getattr(stream, "flush", None)
            try:
                if with_errors is not None:
                    with_errors()
            except (OSError, ValueError):
                pass
        os._exit(code)


def _command_line(arguments: Sequence[str]) -> None:
    from eaglepipe.cli import main

    sys.argv = ["eaglepipe", *arguments]
    main()
