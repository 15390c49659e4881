"""Ranks that end, and machines that fall silent, seen through a real store."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from torch import distributed as dist

from eaglepipe.training.run.ranks.peer_watch import PeerWatch
from eaglepipe.training.run.ranks.peers import HAS_ENDED, Peers

HOST, POLL = socket.gethostname(), 0.02


@pytest.fixture
def store() -> Iterator[dist.TCPStore]:
    yield dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)


def watches(store: dist.TCPStore, processes: tuple[tuple[str, int], ...], messages: list[str]) -> list[PeerWatch]:
    """One for each rank, all in this process."""
    all_peers = [Peers(rank=rank, processes=processes) for rank in range(len(processes))]
    options = {"poll_seconds": POLL, "grace_seconds": 0.2}
    return [PeerWatch(peers, store.clone(), messages.append, **options) for peers in all_peers]


def wait_for(messages: list[str], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(messages) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_every_machine_learns_which_rank_has_ended_and_one_reports_it(store: dist.TCPStore) -> None:
    child = subprocess.Popen(["sleep", "60"])
    messages: list[str] = []
    here, _, elsewhere = watches(store, ((HOST, os.getpid()), (HOST, child.pid), ("far", 1)), messages)
    for watch in (here, elsewhere):
        watch.start()
    time.sleep(5 * POLL)
    assert messages == []
    child.kill()
    wait_for(messages, 2)
    assert sorted(messages) == ["", f"rank 1 (process {child.pid} on {HOST}) {HAS_ENDED}"]
    child.wait()


def test_a_machine_without_a_sign_of_life_is_named_by_its_lowest_rank(store: dist.TCPStore) -> None:
    messages: list[str] = []
    here, *_ = watches(store, ((HOST, os.getpid()), ("far", 7), ("far", 8)), messages)
    here.start()
    wait_for(messages, 1)
    assert messages == ["rank 1 (process 7 on far) does not answer, nor does its machine"]


def test_a_rank_that_ends_by_an_error_says_so_and_a_stopped_watch_ends_nothing(store: dist.TCPStore) -> None:
    messages: list[str] = []
    failing, waiting, parted = watches(store, ((HOST, os.getpid()),) * 3, messages)
    for watch in (failing, waiting, parted):
        watch.start()
    parted.stop()
    failing.announce_end()
    wait_for(messages, 1)
    time.sleep(0.3)
    assert messages == [f"rank 0 (process {os.getpid()} on {HOST}) has ended by an error, which it reports itself"]
