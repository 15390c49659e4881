"""Servers in turn by their weights; one that fails repeatedly gets no work for a while, and the others its share."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_FAILURES = 3  # in a row, after which a server rests
_LONGEST_REST_SECONDS = 30.0


@dataclass(kw_only=True, eq=False)
class Server:
    """One server, as far as it is known."""

    url: str
    weight: int = 1
    model: str = ""
    dialect: str | None = None  # None: not checked yet
    max_length: int | None = None
    failures: int = 0  # in a row
    rests_until: float = 0.0
    credit: int = 0
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def succeeded(self) -> None:
        self.failures, self.rests_until = 0, 0.0

    def failed(self, wait_s: float | None, backoff_s: float) -> None:
        """Count a failure; `wait_s` if the server asks to wait."""
        self.failures += 1
        rest = wait_s or 0.0
        if self.failures >= _FAILURES:
            doubled = backoff_s * 2.0 ** min(self.failures - _FAILURES, 10)
            rest = max(rest, min(doubled, _LONGEST_REST_SECONDS))
        self.rests_until = max(self.rests_until, time.monotonic() + rest)


class Pool:
    """All servers of a run."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = list(servers)

    async def take(self, avoid: Server | None) -> Server:
        """Return the next server in turn, if possible another one than that to be avoided; waits while all rest."""
        while True:
            now = time.monotonic()
            awake = [server for server in self.servers if server.rests_until <= now]
            others = [server for server in awake if server is not avoid]
            if awake:
                return _in_turn(others or awake)
            await asyncio.sleep(max(min(server.rests_until for server in self.servers) - now, 0.01))


def _in_turn(servers: Sequence[Server]) -> Server:
    for server in servers:
        server.credit += server.weight
    chosen = max(servers, key=lambda server: server.credit)
    chosen.credit -= sum(server.weight for server in servers)
    return chosen
