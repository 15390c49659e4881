"""Real child processes without the seconds that a fresh Python needs to import torch.

A server imports everything once and forks a child for each call: the child is a process of its own, to be killed,
signalled and waited for, whose output goes to files. What only a fresh Python shows (imports, options of the
interpreter) is tested with `subprocess`.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

WARM = multiprocessing.get_context("forkserver")
"""In place of `spawn`: children of the server."""

WARM.set_forkserver_preload(["tests.preloaded"])
_OUTPUTS = ("stdout", "stderr")


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a child ended: its exit code, or minus the signal that ended it, and its output."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A running child."""

    def __init__(self, function: Callable[..., object], arguments: tuple[Any, ...], environment: Mapping[str, str]):
        self._folder = tempfile.TemporaryDirectory(prefix="child-", ignore_cleanup_errors=True)  # goes with this object
        self._output = Path(self._folder.name)
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        for name in _OUTPUTS:
            (self._output / name).touch()
        call = (function, arguments, surroundings, self._output)
        self._process: ForkServerProcess = WARM.Process(target=_call, args=call, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the child has ended."""
        if self.is_running:
            os.kill(self.pid, number)

    def output(self) -> str:
        """Return what it has written to its standard output so far."""
        return (self._output / _OUTPUTS[0]).read_text(errors="replace")

    def wait(self, timeout: float = 120) -> Done:
        """Wait for the end; a child that takes longer is killed, and the test fails."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        stdout, stderr = ((self._output / name).read_text(errors="replace") for name in _OUTPUTS)
        assert code is not None, f"still running after {timeout} s\n{stdout}\n{stderr}"
        return Done(returncode=code, stdout=stdout, stderr=stderr)


def start(function: Callable[..., object], *arguments: Any, **environment: str) -> Child:
    """Start a function of a module in a child, with these variables besides those of the tests."""
    return Child(function, arguments, environment)


def start_eaglepipe(*arguments: object, before: Callable[[], object] | None = None, **environment: str) -> Child:
    """Start the command line in a child.

    Args:
        before: is called in the child first, to inject a fault; a function of a module, or a `partial` of one.
    """
    return Child(_command_line, (tuple(map(str, arguments)), before), environment)


def run_eaglepipe(*arguments: object, before: Callable[[], object] | None = None, **environment: str) -> Done:
    """Run the command line in a child to its end."""
    return start_eaglepipe(*arguments, before=before, **environment).wait()


def _call(
    function: Callable[..., object], arguments: tuple[Any, ...], environment: dict[str, str], output: Path
) -> None:
    for number, name in enumerate(_OUTPUTS, start=1):
        descriptor = os.open(output / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def _command_line(arguments: tuple[str, ...], before: Callable[[], object] | None) -> None:
    from eaglepipe.cli import main

    sys.argv = ["eaglepipe", *arguments]
    if before is not None:
        before()
    main()
