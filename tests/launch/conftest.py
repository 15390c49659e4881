"""A login node of the fake Slurm."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.launch import fake_slurm
from tests.launch.forked import SOCKET, ForkingServer
from tests.launch.stalling import stall


@dataclass
class Cluster:
    """Slurm, and a server for the processes of tasks, of which those of the shares in `stalling` stall at first."""

    server: ForkingServer
    stalling: set[str] = field(default_factory=set)

    @property
    def command(self) -> str:
        """How tasks call eaglepipe."""
        return f"{sys.executable} -S {Path(__file__).with_name('forked.py')}"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the commands of Slurm on PATH."""
    binaries, state = tmp_path / "bin", tmp_path / "slurm"
    binaries.mkdir()
    for command in ("sbatch", "squeue", "scancel", "scontrol"):
        script = binaries / command
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake_slurm.__file__} {command} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setattr(fake_slurm, "STATE", state)
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")


@pytest.fixture
def cluster(slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    stalling: set[str] = set()

    def before(arguments: list[str]) -> Callable[[], object] | None:
        if arguments[-1] not in stalling:
            return None
        stalling.discard(arguments[-1])
        return stall

    server = ForkingServer(tmp_path / "socket", before)
    monkeypatch.setenv(SOCKET, str(tmp_path / "socket"))
    yield Cluster(server=server, stalling=stalling)
    server.close()
