"""Ranks that one command starts: they end together, with one message and the exit code of the cause."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from eaglepipe.commands import launch
from eaglepipe.commands.launch import Ending, run_ranks

REPORTING = """
import os, sys, time
from eaglepipe.commands.launch import RankReport
from eaglepipe.errors import CorruptError, LostRankError
rank = os.environ["RANK"]
"""


def shell(script: str, count: int = 3) -> Ending:
    return run_ranks(["sh", "-c", script], count)


def python(script: str, count: int = 3) -> Ending:
    return run_ranks([sys.executable, "-c", REPORTING + script], count)


def test_ranks_are_told_apart_and_meet_at_one_place(tmp_path: Path) -> None:
    script = f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT" > {tmp_path}/$RANK'
    assert shell(script) == Ending(code=0)
    written = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [fields[:3] for fields in written] == [[str(rank), str(rank), "3"] for rank in range(3)]
    assert len({tuple(fields[3:]) for fields in written}) == 1


@pytest.mark.parametrize(("name", "code"), [("KILL", 4), ("SEGV", 1), ("ABRT", 1)])
def test_a_killed_rank_ends_the_others_and_is_named(name: str, code: int) -> None:
    begun = time.monotonic()
    ending = shell(f'[ "$RANK" = 1 ] && kill -{name} $$; exec sleep 60')
    assert ending.code == code and "rank 1 (process " in ending.message and f"SIG{name}" in ending.message
    assert time.monotonic() - begun < 20


def test_a_rank_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_TOGETHER_SECONDS", 0.1)
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.3)
    ending = shell('[ "$RANK" = 2 ] && exit 3; trap "" TERM; while true; do sleep 0.1; done')
    assert ending.code == 3 and "rank 2 (process " in ending.message and "exit code 3" in ending.message


def test_the_error_of_one_rank_is_the_message() -> None:
    script = """
error = CorruptError("shard 7 is damaged") if rank == "1" else LostRankError("rank 1 has ended")
time.sleep(0.3 * (rank == "1"))  # those that lose it may end before it does
RankReport.write(error); sys.exit(error.exit_code)
"""
    assert python(script) == Ending(code=3, message="rank 1: shard 7 is damaged")


def test_an_error_of_all_ranks_is_printed_once_and_for_none_of_them() -> None:
    script = 'RankReport.write(CorruptError("shard 7 is damaged")); sys.exit(3)'
    assert python(script) == Ending(code=3, message="shard 7 is damaged")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_and_the_ending_is_that_of_a_stop(tmp_path: Path, number: signal.Signals) -> None:
    script = f"""
trap "sleep 0.$RANK; touch {tmp_path}/saved-$RANK; exit 75" TERM INT USR1
touch {tmp_path}/ready-$RANK; while true; do sleep 0.05; done
"""
    ready = [tmp_path / f"ready-{rank}" for rank in range(3)]
    signal_once(ready, number)
    assert shell(script).code == 75
    assert len(list(tmp_path.glob("saved-*"))) == 3


def signal_once(ready: Sequence[Path], number: signal.Signals) -> None:
    def send() -> None:
        while not all(path.exists() for path in ready):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
