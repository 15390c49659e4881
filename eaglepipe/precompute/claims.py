"""Shares and claims of shards, by which any number of processes fill one cache.

A shard is claimed through a file lock that ends with its process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Process `rank` of `count` that share a cache: it takes the shards with number % count == rank."""

    rank: int = 0
    count: int = 1

    def takes(self, shard: int) -> bool:
        return shard % self.count == self.rank


def parse_worker(text: str | None = None) -> Worker:
    """Return the share `i/n`; of None, the share that torchrun gives this process, else all.

    Raises:
        ConfigError: another text.
    """
    if text is None:
        return Worker(rank=int(os.environ.get("RANK", "0")), count=int(os.environ.get("WORLD_SIZE", "1")))
    rank, _, count = text.partition("/")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise ConfigError(f"--workers {text!r}: expected i/n with 0 <= i < n, such as 0/4")
    return Worker(rank=int(rank), count=int(count))


@contextmanager
def claimed_shard(folder: Path, shard: int) -> Iterator[bool]:
    """Hold a lock on a shard, which ends with its process; False if another process holds it."""
    locks = folder / WORK_FOLDER / "claims"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(locks / f"{shard:05d}.lock", blocking=False):
            yield True
    except Timeout:
        yield False


def is_held(folder: Path, shard: int) -> bool:
    """Return whether another process holds a shard now."""
    with claimed_shard(folder, shard) as claimed:
        return not claimed
