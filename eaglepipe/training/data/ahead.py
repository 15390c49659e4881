"""Fetching ahead of the loader: stored samples come in training order while earlier steps are computed.

A step is handed on before its samples are there: whoever reads it waits for the one it needs, so that a run starts with
the first of them. What is asked for ahead stays below half of the bound of local copies, so that nothing is dropped
before it was read.
"""

import queue
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from typing import Protocol, runtime_checkable

from eaglepipe.errors import EaglepipeError
from eaglepipe.stores.room import NoRoomError
from eaglepipe.training.data.batch import StepPlan

_FETCHERS = 6
_MAX_STEPS = 256


class StoredPart(Protocol):
    """A part of a stored cache that is fetched at once."""

    @property
    def key(self) -> Hashable: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def bound_bytes(self) -> int:
        """Of all local copies."""

    def fetch(self) -> None:
        """Bring it to this machine, unless it is there."""


@runtime_checkable
class StoredSource(Protocol):
    """A source whose samples may lie in an object store."""

    def stored_parts(self, samples: Iterable[int], /) -> Iterator[StoredPart]:
        """Yield the parts of stored caches that hold these samples, in their order."""


def fetched_ahead(source: object, plans: Iterable[StepPlan]) -> Iterator[StepPlan]:
    """Yield plans as they are, their samples asked for some steps ahead; those of local caches change nothing."""
    if not isinstance(source, StoredSource):
        yield from plans
        return
    rest, ahead = iter(plans), deque[tuple[StepPlan, int]]()
    with _Fetchers() as fetchers:
        while True:
            while len(ahead) < _MAX_STEPS and not fetchers.are_full(sum(size for _, size in ahead)):
                if (plan := next(rest, None)) is None:
                    break
                samples = [sample for batch in plan.micro_batches for row in batch for sample in row]
                ahead.append((plan, fetchers.ask(source.stored_parts(samples))))
            if not ahead:
                return
            yield ahead.popleft()[0]


class _Fetchers:
    """Threads that fetch parts in the order they are asked for; daemons, since nothing is lost if they end half-way."""

    def __init__(self) -> None:
        self._parts: queue.Queue[StoredPart | None] = queue.Queue()
        self._recent: dict[Hashable, int] = {}
        self._recent_bytes = 0
        self._allowed: int | None = None  # bytes ahead
        self._stopping = threading.Event()

    def __enter__(self) -> "_Fetchers":
        for number in range(_FETCHERS):
            threading.Thread(target=self._work, name=f"eaglepipe-fetch-{number}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for _number in range(_FETCHERS):
            self._parts.put(None)

    def are_full(self, num_bytes: int) -> bool:
        """Return whether as much is asked for as local copies have room for."""
        return self._allowed is not None and num_bytes >= self._allowed

    def ask(self, parts: Iterable[StoredPart]) -> int:
        """Queue parts, each once; returns their bytes."""
        num_bytes = 0
        for part in parts:
            self._allowed = part.bound_bytes // 2
            if part.key in self._recent:
                continue
            self._recent[part.key] = part.num_bytes
            self._recent_bytes += part.num_bytes
            while len(self._recent) > 1 and self._recent_bytes > self._allowed:
                self._recent_bytes -= self._recent.pop(next(iter(self._recent)))  # it may have been dropped since
            num_bytes += part.num_bytes
            self._parts.put(part)
        return num_bytes

    def _work(self) -> None:
        while (part := self._parts.get()) is not None and not self._stopping.is_set():
            try:
                part.fetch()
            except (EaglepipeError, OSError, NoRoomError):
                continue  # whoever reads the part meets the failure, unless it has passed
