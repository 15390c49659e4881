"""Ranks that start again meet each other, and not those whose entries they find."""

import threading
from datetime import timedelta

import pytest
from torch.distributed import PrefixStore, TCPStore

from eaglepipe.training.run.ranks.meeting import meet


def start(store: TCPStore, ranks: range, size: int) -> dict[int, bytes]:
    """What each rank reads under the name that it has agreed on with the others; rank 0 writes it."""
    read: dict[int, bytes] = {}

    def join(rank: int) -> None:
        own = store.clone()
        shared = PrefixStore(meet(own, rank, size, patience_seconds=10), own)
        if rank == 0:
            shared.set("port", str(id(read)))
        read[rank] = shared.get("port")

    threads = [threading.Thread(target=join, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return read


def test_every_start_has_a_part_of_its_own_whatever_the_size() -> None:
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)
    for size in (3, 2, 3, 1):
        read = start(store, range(size), size)
        assert len(read) == size and len(set(read.values())) == 1


def test_entries_of_an_earlier_start_stand_in_for_nobody() -> None:
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=10), wait_for_workers=False)
    start(store, range(2), 2)
    for rank in (0, 1):
        with pytest.raises(RuntimeError, match=f"rank {rank} waited"):
            meet(store, rank, 2, patience_seconds=0.3)
