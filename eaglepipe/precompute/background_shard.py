"""A thread that moves samples into a shard, so that disks and the target work at the same time.

The queue is bounded: a slow disk slows the target down and never fills the memory.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import RefusedItem, ShardWriter

Job = Callable[[], Iterable[CachedSample | RefusedItem]]


class BackgroundShard:
    """Runs jobs that yield the samples of one shard, in order; `finish` waits for all of them and publishes.

    Leaving the block without `finish` drops the shard. An exception of the thread is raised at the next call.
    """

    def __init__(self, writer: ShardWriter, *, queue_jobs: int) -> None:
        self._writer, self._queue_jobs = writer, queue_jobs
        self._thread = ThreadPoolExecutor(1, "shard-writer")
        self._jobs: deque[Future[None]] = deque()

    def __enter__(self) -> "BackgroundShard":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._writer.abort()

    def submit(self, job: Job) -> None:
        """Queue one job; blocks while the queue is full."""
        while self._jobs and (self._jobs[0].done() or len(self._jobs) > self._queue_jobs):
            self._jobs.popleft().result()
        self._jobs.append(self._thread.submit(self._write, job))

    def finish(self) -> int:
        """Wait, publish shard and sidecar; returns the shard's bytes."""
        while self._jobs:
            self._jobs.popleft().result()
        return self._writer.finish().shard.bytes

    def _write(self, job: Job) -> None:
        for item in job():
            self._writer.add(item)
