"""The processes of a run under torchrun: where they are, and which of them has ended when a collective fails."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from torch import distributed as dist

_SEARCH_SECONDS = 5.0  # a process that ends closes its connections first
_TOGETHER_SECONDS = 1.0  # until all ranks have looked


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Host and process id of every rank."""

    rank: int
    processes: tuple[tuple[str, int], ...]

    def describe_end(self) -> str:
        """Wait until a rank's process has ended, and name it; empty on all ranks but the lowest that is left."""
        ended: list[int] = []
        deadline = time.monotonic() + _SEARCH_SECONDS
        while not (ended := self._ended()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(_TOGETHER_SECONDS)
        if self.rank != min(set(range(len(self.processes))) - set(ended)):
            return ""
        if not ended:
            return "the connection to another rank is lost"
        host, process = self.processes[ended[0]]
        return f"rank {ended[0]} (process {process} on {host}) has ended"

    def _ended(self) -> list[int]:
        here = self.processes[self.rank][0]
        return [
            rank for rank, (host, process) in enumerate(self.processes) if host == here and not _is_running(process)
        ]


def meet_peers() -> Peers:
    """Exchange hosts and process ids with all ranks of the process group."""
    processes: list[tuple[str, int]] = [("", 0)] * dist.get_world_size()
    dist.all_gather_object(processes, (socket.gethostname(), os.getpid()))
    return Peers(rank=dist.get_rank(), processes=tuple(processes))


def _is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in "ZX"  # ended, and not waited for yet
    except OSError:
        return not Path("/proc/self").exists()
