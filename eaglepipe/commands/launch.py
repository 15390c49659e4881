"""A command as several processes of this machine, one a GPU, that end together and with one message and exit code.

As torchrun with one node, whose own exit code is 1 whatever its processes end with.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from eaglepipe.errors import EXIT_BUG, EXIT_RESOURCES, EXIT_STOPPED, EaglepipeError, LostRankError
from eaglepipe.signals import ENDS_WITH_PARENT, end_with_parent, stop_signals_to

REPORT_VARIABLE = "EAGLEPIPE_RANK_REPORT"
_TOGETHER_SECONDS = 1.0  # in which the others may end by the same error, once a rank has ended
_GRACE_SECONDS = 20.0  # for those that are asked to stop then
_POLL_SECONDS = 0.05
_STOPPED = (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1)
_AGAIN = "run it again to continue"


@dataclass(frozen=True, kw_only=True)
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"
    report: Path

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def read_report(self) -> "RankReport | None":
        try:
            return RankReport(**json.loads(self.report.read_text()))
        except OSError:
            return None


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """The last message of a rank."""

    message: str
    lost_another: bool

    @staticmethod
    def write(error: EaglepipeError) -> bool:
        """Leave the message to the process that started this one; False if there is none."""
        path = os.environ.get(REPORT_VARIABLE)
        if path is None:
            return False
        document = {"message": str(error), "lost_another": isinstance(error, LostRankError)}
        with suppress(OSError):
            Path(path).write_text(json.dumps(document))
        return True


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run of several ranks ended."""

    code: int
    message: str = ""


def is_launched() -> bool:
    """Return whether this process is a rank of `run_ranks`."""
    return REPORT_VARIABLE in os.environ


def end_with_launcher() -> None:
    """Stop this process as by SIGTERM if the one that started it ends, and is to take it along."""
    if is_launched() or ENDS_WITH_PARENT in os.environ:
        end_with_parent()


def run_ranks(command: Sequence[str], count: int) -> Ending:
    """Run a command in `count` processes, and pass signals on to them.

    If one ends in any way but well, the others are stopped: soon by SIGTERM, then by SIGKILL.
    """
    ranks: list[_Rank] = []
    with TemporaryDirectory(prefix="eaglepipe-") as folder, _forwarding_signals(ranks) as received:
        port = _free_port()
        try:
            while len(ranks) < count and not received:
                ranks.append(_start(command, len(ranks), count, port, Path(folder)))
            failed = _wait(ranks, received)
        finally:
            for rank in ranks:
                rank.process.kill()
                rank.process.wait()
        return _ending(failed)


def _start(command: Sequence[str], number: int, count: int, port: int, folder: Path) -> _Rank:
    report = folder / f"{number}.json"
    environment = {
        "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        REPORT_VARIABLE: str(report),
    }
    process = subprocess.Popen(command, env=environment, start_new_session=True)  # so that Ctrl-C comes once
    return _Rank(number=number, process=process, report=report)


@contextmanager
def _forwarding_signals(ranks: Sequence[_Rank]) -> Iterator[list[int]]:
    """Send stop signals on to the ranks while the block runs; yields those that came."""
    received: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        received.append(number)
        for rank in ranks:
            rank.process.send_signal(number)

    with stop_signals_to(forward):
        yield received


def _wait(ranks: Sequence[_Rank], received: Sequence[int]) -> list[_Rank]:
    """Wait for all ranks; returns those that failed by themselves, in the order in which they ended."""
    failed: list[_Rank] = []
    asked = bool(received)
    ended_at = float("inf")  # of the first rank that failed
    while running := [rank for rank in ranks if rank.code is None]:
        failed += [rank for rank in ranks if rank.code and rank not in failed]
        ended_at = min(ended_at, time.monotonic()) if failed else ended_at
        waited = time.monotonic() - ended_at
        if waited > _TOGETHER_SECONDS and not (asked or received):
            asked = True
            for rank in running:
                rank.process.terminate()
        if waited > _GRACE_SECONDS:
            return failed
        time.sleep(_POLL_SECONDS)
    return failed + [rank for rank in ranks if rank.code and rank not in failed]


def _ending(failed: Sequence[_Rank]) -> Ending:
    if not failed:
        return Ending(code=0)
    cause = min(failed, key=_order_of_blame)
    code = cause.process.returncode
    name = f"rank {cause.number} (process {cause.process.pid})"
    if _order_of_blame(cause) == 0:
        memory = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        message = f"{name} was killed by {signal.Signals(-code).name}{memory}; the other ranks are stopped, {_AGAIN}"
        return Ending(code=EXIT_RESOURCES if memory else EXIT_BUG, message=message)
    reports = [report for rank in failed if (report := rank.read_report()) is not None]
    own = cause.read_report()
    if code in _STOPPED:
        return Ending(code=EXIT_STOPPED, message=own.message if own else f"stopped before the run began, {_AGAIN}")
    if own is None:
        return Ending(code=code, message=f"{name} ended with exit code {code}, its own messages are above; {_AGAIN}")
    common = all(report.message == own.message for report in reports) and len(reports) > 1
    return Ending(code=code, message=own.message if common else f"rank {cause.number}: {own.message}")


def _order_of_blame(rank: _Rank) -> int:
    """Order ranks by how likely they are the cause: killed ones first, those that only lost another one last."""
    code, report = rank.process.returncode, rank.read_report()
    if code in _STOPPED:
        return 2
    if code < 0:
        return 0
    return 3 if report is not None and report.lost_another else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
