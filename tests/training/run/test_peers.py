"""Which rank has ended, as the others find out: real processes that have."""

import os
import socket
import subprocess

from eaglepipe.training.run.ranks.peers import HAS_ENDED, Peers

HOST = socket.gethostname()


def test_a_killed_process_is_named_by_the_lowest_rank_that_is_left() -> None:
    child = subprocess.Popen(["sleep", "60"])
    child.kill()  # and not waited for: its entry is still there
    processes = ((HOST, os.getpid()), (HOST, child.pid), (HOST, os.getpid()))
    assert Peers(rank=0, processes=processes).describe_end() == f"rank 1 (process {child.pid} on {HOST}) {HAS_ENDED}"
    assert Peers(rank=2, processes=processes).describe_end() == ""
    child.wait()
    ended_first = ((HOST, child.pid), (HOST, os.getpid()))
    assert Peers(rank=1, processes=ended_first).describe_end().startswith(f"rank 0 (process {child.pid}")
