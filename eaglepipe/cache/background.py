"""Moves samples into shards on a thread of its own, so that disks and the target work at the same time.

The queue is bounded: a slow disk slows the target down and never fills the memory.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from types import TracebackType

from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import ShardWriter

Refused = tuple[str, str]
Job = Callable[[], Iterable[CachedSample | Refused]]


class BackgroundShard:
    """Runs jobs that yield the samples of one shard, in order; `finish` waits for all of them and publishes.

    Leaving the block without `finish` drops the shard. An exception of the thread is raised at the next call.
    """

    def __init__(self, writer: ShardWriter, *, queue_jobs: int) -> None:
        self._writer = writer
        self._queue: queue.Queue[Job | None] = queue.Queue(maxsize=queue_jobs)
        self._failure: BaseException | None = None
        self._dropped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="shard-writer", daemon=True)

    def __enter__(self) -> "BackgroundShard":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self._dropped.set()
            self._queue.put(None)
            self._thread.join()
        self._writer.abort()

    def submit(self, job: Job) -> None:
        """Queue one job; blocks while the queue is full."""
        self._raise_failure()
        self._queue.put(job)

    def finish(self) -> int:
        """Wait, publish shard and sidecar; returns the shard's bytes."""
        self._queue.put(None)
        self._thread.join()
        self._raise_failure()
        return self._writer.finish().shard.bytes

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._failure is not None or self._dropped.is_set():
                continue
            try:
                self._write(job)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                self._failure = error

    def _write(self, job: Job) -> None:
        for item in job():
            if isinstance(item, CachedSample):
                self._writer.write(item)
            else:
                self._writer.refuse(*item)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
