"""The processes of a run under torchrun: where they are, and which of them has ended when a collective fails."""

import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import distributed as dist

_SEARCH_SECONDS = 5.0  # a process that ends closes its connections first
_TOGETHER_SECONDS = 1.0  # until all ranks have looked

HAS_ENDED = "has ended without a message, as when the system kills it because memory ran out"


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Host and process id of every rank.

    `machines` tells hosts of one name apart, and containers of one host, whose process ids mean nothing to each other.
    """

    rank: int
    processes: tuple[tuple[str, int], ...]
    machines: tuple[str, ...] = ()

    def describe_end(self) -> str:
        """Wait until a rank's process has ended, and name it; empty on all ranks but the lowest that is left."""
        ended: list[int] = []
        deadline = time.monotonic() + _SEARCH_SECONDS
        while not (ended := self.ended()) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(_TOGETHER_SECONDS)
        if self.rank != min(set(range(len(self.processes))) - set(ended)):
            return ""
        return f"{self.describe(ended[0])} {HAS_ENDED}" if ended else "the connection to another rank is lost"

    def describe(self, rank: int) -> str:
        """Return a rank's number, process and host."""
        host, process = self.processes[rank]
        return f"rank {rank} (process {process} on {host})"

    def ended(self) -> list[int]:
        """Return the ranks of this machine whose processes have ended."""
        return [rank for rank in self.ranks_of(self.machine_of(self.rank)) if not _is_running(self.processes[rank][1])]

    def machine_of(self, rank: int) -> str:
        """Return the name of a rank's machine."""
        return self.machines[rank] if self.machines else self.processes[rank][0]

    def ranks_of(self, machine: str) -> tuple[int, ...]:
        """Return the ranks of a machine, ascending."""
        return tuple(rank for rank in range(len(self.processes)) if self.machine_of(rank) == machine)


def meet_peers() -> Peers:
    """Exchange hosts and process ids with all ranks of the process group."""
    met: list[tuple[str, int, str]] = [("", 0, "")] * dist.get_world_size()
    dist.all_gather_object(met, (socket.gethostname(), os.getpid(), _this_machine()))
    processes = tuple((host, process) for host, process, _ in met)
    return Peers(rank=dist.get_rank(), processes=processes, machines=tuple(machine for *_, machine in met))


def _this_machine() -> str:
    """Return a name that two processes share if they see each other's process ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def _is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] not in "ZX"  # ended, and not waited for yet
    except OSError:
        return not Path("/proc/self").exists()
