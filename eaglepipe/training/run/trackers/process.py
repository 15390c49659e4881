"""A drawing by a tracker in a process of its own."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import eaglepipe

_PACKAGES = Path(eaglepipe.__file__).parent.parent


class TrackerProcess:
    """The other end of `child`."""

    def __init__(self, tracker: str, folder: Path, *, run_id: str, name: str, config: dict[str, Any]) -> None:
        paths = os.pathsep.join(filter(None, [str(_PACKAGES), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # signals are the run's, and no terminal is asked for passwords
        )
        self._send({"tracker": tracker, "folder": str(folder), "run_id": run_id, "name": name, "config": config})

    def add(self, values: dict[str, float], step: int) -> None:
        self._send({"values": values, "step": step})

    def close(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._check_end()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def _send(self, message: dict[str, Any]) -> None:
        stream = self._process.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(message).encode() + b"\n")
            stream.flush()
        except BrokenPipeError:
            self._check_end()
            raise

    def _check_end(self) -> None:
        """Wait for the process; raises ConnectionError with its message if it failed."""
        assert self._process.stdout is not None
        report = self._process.stdout.read()
        if code := self._process.wait():
            message = json.loads(report) if report else f"its process ended with code {code}"
            raise ConnectionError(message)
