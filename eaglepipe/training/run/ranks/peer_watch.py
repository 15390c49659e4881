"""A thread that notices ranks that have ended while this one waits for them in a collective.

Processes of this machine are looked up; machines tell each other that they are alive in the store by which the ranks
have met. The first rank that is found to have ended is the cause, for all. A collective of gloo fails by itself then;
one of NCCL may wait for its time-out, so the thread ends the process.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from eaglepipe.training.run.ranks.peers import HAS_ENDED, Peers

_KEY, _BEAT = "ended", "beat"
_POLL_SECONDS = 1.0
_SILENT_POLLS = 15  # counted, not timed: whoever was suspended must not find all others silent
_GRACE_SECONDS = 6.0  # in which the main thread may end by itself
_TOGETHER_SECONDS = 1.0  # until all ranks know
_BY_AN_ERROR = "has ended by an error, which it reports itself"
_STORE_TIMEOUT = timedelta(seconds=10)


@dataclass(frozen=True, kw_only=True)
class _Cause:
    ranks: tuple[int, ...]
    text: str


class PeerWatch:
    """A watch over the ranks of a run, from `start` to `stop`."""

    def __init__(
        self,
        peers: Peers,
        store: Store,
        end: Callable[[str], None],
        *,
        poll_seconds: float = _POLL_SECONDS,
        grace_seconds: float = _GRACE_SECONDS,
    ) -> None:
        """Prepare a watch.

        Args:
            store: no other thread may use this connection.
            end: ends the process with a message, "" if another rank has it.
        """
        self._peers, self._store, self._end = peers, store, end
        self._poll_seconds, self._grace_seconds = poll_seconds, grace_seconds
        self._found: _Cause | None = None
        self._stopping = threading.Event()
        self._announced: int | None = None
        self._beats = 0
        self._seen: dict[str, tuple[bytes, int]] = {}  # the last beat of each machine, and for how many polls
        self._failures = 0
        self._thread = threading.Thread(target=self._watch, name="peer-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, as the ranks part."""
        self._stopping.set()
        self._thread.join(timeout=_STORE_TIMEOUT.total_seconds())

    def announce_end(self) -> None:
        """Let the others know that this rank ends by an error, which it reports itself."""
        self._announced = self._peers.rank
        self._thread.join(timeout=3 * self._poll_seconds)

    def describe_end(self) -> str:
        """Wait until it is known which rank has ended, and name it; empty on all ranks but the lowest that is left."""
        deadline = time.monotonic() + (_SILENT_POLLS + 2) * self._poll_seconds
        while self._found is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(_TOGETHER_SECONDS)
        self._stopping.set()
        return self._peers.describe_end() if self._found is None else self._message(self._found)

    def _message(self, cause: _Cause) -> str:
        left = set(range(len(self._peers.processes))) - set(cause.ranks)
        return cause.text if self._peers.rank == min(left, default=0) else ""

    def _watch(self) -> None:
        with suppress(RuntimeError):
            self._store.set_timeout(_STORE_TIMEOUT)
        while self._found is None and not self._stopping.wait(self._poll_seconds):
            announcing = self._announced is not None
            self._found = self._poll()
            if announcing:
                return
        if self._announced is None and not self._stopping.wait(self._grace_seconds) and self._found is not None:
            self._end(self._message(self._found))

    def _poll(self) -> _Cause | None:
        """Return the cause that is known to all, once there is one."""
        own = self._announced
        ended = [own] if own is not None else self._peers.ended()
        how = HAS_ENDED if own is None else _BY_AN_ERROR
        cause = _of_ranks(tuple(ended), f"{self._peers.describe(ended[0])} {how}") if ended else None
        try:
            cause = cause or self._silent_machine()
            if cause is not None:
                text = json.dumps([cause.ranks, cause.text])
                return _parse(self._store.compare_set(_KEY, "", text))
            self._failures = 0
            return _parse(self._store.get(_KEY)) if self._store.check([_KEY]) else None
        except (RuntimeError, ValueError):  # the store ends with rank 0 or its machine
            self._failures += 1
            if cause is not None or self._failures < 3:
                return cause
            machine = self._peers.machine_of(0)
            return _of_ranks(self._peers.ranks_of(machine), f"{self._peers.describe(0)} does not answer")

    def _silent_machine(self) -> _Cause | None:
        """Beat for this machine if this is its lowest rank, and look for one that has not for too long."""
        peers = self._peers
        machines = list(dict.fromkeys(map(peers.machine_of, range(len(peers.processes)))))
        own = peers.machine_of(peers.rank)
        if len(machines) == 1 or peers.ranks_of(own)[0] != peers.rank:
            return None
        self._beats += 1
        self._store.set(f"{_BEAT}/{machines.index(own)}", str(self._beats))
        for number, machine in enumerate(machines):
            key = f"{_BEAT}/{number}"
            beat = self._store.get(key) if self._store.check([key]) else b""
            last, polls = self._seen.get(machine, (b"", 0))
            self._seen[machine] = (beat, polls + 1 if beat == last else 0)
            if self._seen[machine][1] >= _SILENT_POLLS:
                ranks = peers.ranks_of(machine)
                return _of_ranks(ranks, f"{peers.describe(ranks[0])} does not answer, nor does its machine")
        return None


def _of_ranks(ranks: tuple[int, ...], text: str) -> _Cause:
    return _Cause(ranks=ranks, text=text)


def _parse(value: bytes) -> _Cause:
    ranks, text = json.loads(value)
    return _Cause(ranks=tuple(ranks), text=text)
