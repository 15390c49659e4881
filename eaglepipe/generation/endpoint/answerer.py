"""Servers as those who answer: many requests at a time in a thread of its own, each tried again elsewhere."""

import asyncio
import queue
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from eaglepipe.errors import EaglepipeError
from eaglepipe.generation.answering import Answer, Prompt, Unanswered
from eaglepipe.generation.endpoint.checks import Checker
from eaglepipe.generation.endpoint.dialects import CHAT, CHAT_IDS, Reply, TextReply
from eaglepipe.generation.endpoint.failures import PassingError, RefusedError
from eaglepipe.generation.endpoint.pool import Pool, Server
from eaglepipe.generation.endpoint.texts import tokenised
from eaglepipe.generation.endpoint.transport import unreachable
from eaglepipe.signals import StopFlag

_POLL_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 60.0
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Persistence:
    """How long a request is tried, and how many may fail in a row before the servers are given up."""

    retries: int
    backoff_s: float
    failed_in_a_row: int


class EndpointAnswerer(AbstractContextManager["EndpointAnswerer"]):
    """Checked servers, at least one; the answers come in any order."""

    def __init__(self, pool: Pool, checker: Checker, persistence: Persistence, stop: StopFlag, saved: str) -> None:
        self._pool, self._checker, self._persistence = pool, checker, persistence
        self._stop, self._saved = stop, saved
        self._replies: queue.SimpleQueue[tuple[int, Prompt, Reply] | EaglepipeError] = queue.SimpleQueue()
        self._unanswered = self._failed_in_a_row = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with suppress(Exception):  # what is under way is given up anyhow
            closing.result(_CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)

    def check(self) -> None:
        """Check all servers; those that do not answer are checked again before they get work.

        Raises:
            ConfigError: one serves another model, or has another tokenizer.
            UnreachableError: none answers.
            StoppedError: a signal came.
        """
        self._replies_of(self._check_all())
        while True:
            entry = self._next()
            if isinstance(entry, EaglepipeError):
                raise entry
            return

    @property
    def max_length(self) -> int | None:
        """Tokens of prompt and answer that all checked servers take."""
        return min((server.max_length for server in self._pool.servers if server.max_length), default=None)

    def add(self, request_id: int, prompt: Prompt) -> None:
        """Send a prompt."""
        self._unanswered += 1
        self._replies_of(self._ask(request_id, prompt))

    def answered(self) -> Iterator[tuple[int, Answer]]:
        """Yield answers as they come.

        Raises:
            StoppedError: a signal came.
            UnreachableError: no server answers any more.
            EaglepipeError: a server refuses the key, or serves another model now.
        """
        while self._unanswered:
            entry = self._next()
            if isinstance(entry, EaglepipeError):
                raise entry
            request_id, prompt, reply = entry
            self._unanswered -= 1
            yield request_id, tokenised(self._checker.speech, prompt, reply) if isinstance(reply, TextReply) else reply

    def _next(self) -> tuple[int, Prompt, Reply] | EaglepipeError:
        while True:
            self._stop.raise_if_set(self._saved)
            with suppress(queue.Empty):
                return self._replies.get(timeout=_POLL_SECONDS)

    def _replies_of(self, asking: Coroutine[Any, Any, None]) -> None:
        def start() -> None:
            task = self._loop.create_task(self._reported(asking))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(start)

    async def _reported(self, asking: Coroutine[Any, Any, None]) -> None:
        try:
            await asking
        except EaglepipeError as error:
            self._replies.put(error)
        except Exception as error:  # noqa: BLE001  a mistake of ours must not be waited for
            self._replies.put(EaglepipeError(f"regenerate.endpoint: {type(error).__name__}: {error!s:.200}"))

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._checker.transport.close()

    async def _check_all(self) -> None:
        """Check until one server answers."""
        for attempt in range(self._persistence.retries + 1):
            found = await asyncio.gather(
                *(self._check(server) for server in self._pool.servers), return_exceptions=True
            )
            for error in found:
                if isinstance(error, EaglepipeError):
                    raise error
            if any(server.dialect is not None for server in self._pool.servers):
                self._replies.put((0, Prompt(token_ids=np.empty(0, dtype=np.int32)), _failed("")))
                return
            passing = [error for error in found if isinstance(error, PassingError)]
            if len(passing) < len(found):
                raise next(error for error in found if not isinstance(error, PassingError | None))
            if attempt < self._persistence.retries:
                await asyncio.sleep(self._wait(attempt, passing[0].wait_s))
        reasons = "; ".join(f"{server.url}: {error}" for server, error in zip(self._pool.servers, passing, strict=True))
        raise unreachable(reasons)

    async def _check(self, server: Server) -> None:
        async with server.checking:
            if server.dialect is None:
                await self._checker.check(server)

    async def _ask(self, request_id: int, prompt: Prompt) -> None:
        self._replies.put((request_id, prompt, await self._reply(prompt)))

    async def _reply(self, prompt: Prompt) -> Reply:
        """Try until an answer or a refusal comes, or all attempts are spent."""
        server, reason = None, ""
        for attempt in range(self._persistence.retries + 1):
            server = await self._pool.take(server)
            try:
                await self._check(server)
                reply = await self._attempt(server, prompt)
            except PassingError as error:
                reason = f"{server.url}: {error.reason}"
                server.failed(error.wait_s, self._persistence.backoff_s)
                if attempt < self._persistence.retries:
                    await asyncio.sleep(self._wait(attempt, None if len(self._pool.servers) > 1 else error.wait_s))
            except RefusedError as error:
                return _refused(error)
            else:
                server.succeeded()
                self._failed_in_a_row = 0
                return reply
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._persistence.failed_in_a_row:
            raise unreachable(f"{self._failed_in_a_row} requests failed in a row, the last by {reason}; {self._saved}")
        return _failed(reason)

    async def _attempt(self, server: Server, prompt: Prompt) -> Reply:
        dialect = server.dialect
        assert dialect is not None
        route = "/chat/completions" if dialect in (CHAT, CHAT_IDS) else "/completions"
        body = self._checker.speech.body(dialect, server.model, prompt)
        document = await self._checker.transport.post(server.url + route, body)
        return self._checker.speech.read(dialect, prompt, document)

    def _wait(self, attempt: int, asked_s: float | None) -> float:
        doubled = min(self._persistence.backoff_s * 2.0**attempt, _LONGEST_WAIT_SECONDS)
        return doubled if asked_s is None else max(asked_s, 0.0)


def _failed(detail: str) -> Answer:
    unanswered = Unanswered(status="error", reason="the endpoint failed", detail=detail, passing=True)
    return Answer(token_ids=np.empty(0, dtype=np.int32), ended=False, unanswered=unanswered)


def _refused(error: RefusedError) -> Answer:
    reason = "prompt too long" if error.too_long else "the endpoint refuses the request"
    unanswered = Unanswered(status="error", reason=reason, detail=str(error))
    return Answer(token_ids=np.empty(0, dtype=np.int32), ended=False, unanswered=unanswered)
