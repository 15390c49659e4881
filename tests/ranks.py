"""Ranks that meet: real processes of this machine, as torchrun would start them."""

import socket
from collections.abc import Callable
from typing import Any

from tests.processes import Child, Done, start


def rank_variables(count: int) -> list[dict[str, str]]:
    """Return the environment of each rank of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def start_ranks(count: int, function: Callable[..., object], *arguments: Any) -> list[Child]:
    """Start `count` ranks that meet."""
    return [start(function, *arguments, **variables) for variables in rank_variables(count)]


def run_ranks(count: int, function: Callable[..., object], *arguments: Any) -> list[Done]:
    """Run ranks to their end, which has to be a good one."""
    done = [rank.wait() for rank in start_ranks(count, function, *arguments)]
    assert all(one.returncode == 0 for one in done), "\n".join(one.stderr for one in done)
    return done
