"""The process in which vLLM runs: `python -m eaglepipe.vllm_engine.host FD LIFELINE`.

It is driven through a connection and ends with the process that started it, however that ended.
"""

import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import fields
from difflib import get_close_matches
from multiprocessing.connection import Connection
from typing import Any

from eaglepipe.vllm_engine.messages import EngineAnswer, EngineFailure, EngineSampling, EngineSetup, stops_at

_READ_STOP = "eaglepipe_read_stop"
_MEMORY_WORDS = ("out of memory", "memory utilization", "available memory", "kv cache memory", "no memory")


class Host:
    """One engine, stepped while it has requests."""

    def __init__(self, connection: Connection, setup: EngineSetup) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        known = [field.name for field in fields(EngineArgs)]
        for name in setup.given:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise _ArgumentError(f"{name}: vLLM's engine has no such argument{hint}")
        self._connection = connection
        self._read_stop: dict[str, EngineSampling] = {}
        self._messages: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**setup.arguments))
        self._scheduler = self._engine.engine_core.engine_core.scheduler
        speculative = setup.arguments.get("speculative_config") or {}
        self._only_captures = speculative.get("method") == "extract_hidden_states"

    def serve(self) -> None:
        """Handle messages between the engine's steps until the connection closes."""
        threading.Thread(target=self._receive, daemon=True).start()
        while True:
            while (message := self._next_message()) != ():
                if message is None:
                    self._engine.engine_core.shutdown()
                    return
                self._handle(*message)
            outputs = self._engine.step()
            if self._only_captures:
                self._forget_drafts()
            if self._read_stop:
                self._end_stopped()
            answers = [answer for output in outputs if (answer := self._answer(output)) is not None]
            if answers:
                self._connection.send(("answers", answers))

    def _receive(self) -> None:
        """Take messages off the connection as they come, so that whoever sends never waits for a step."""
        while True:
            try:
                self._messages.put(self._connection.recv())
            except (EOFError, OSError):
                self._messages.put(None)
                return

    def _next_message(self) -> tuple[Any, ...] | None:
        """Return a message, None after the last, or () if there is none and the engine has work."""
        try:
            return self._messages.get(block=not self._has_work())
        except queue.Empty:
            return ()

    def _has_work(self) -> bool:
        return bool(self._engine.has_unfinished_requests() or self._scheduler.has_requests())

    def _handle(self, name: str, *args: Any) -> None:
        if name == "add":
            self._add(*args)
        else:
            self._connection.send(("result", getattr(self, f"_{name}")(*args)))

    def _add(self, request_id: str, token_ids: list[int], sampling: EngineSampling) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        transfer = dict(sampling.kv_transfer_params)
        extra: dict[str, Any] = {"kv_transfer_params": transfer} if transfer else {}
        if sampling.read_stop:
            self._read_stop[request_id] = sampling
            extra[_READ_STOP] = list(sampling.stop_token_ids)
        params = SamplingParams(
            max_tokens=sampling.max_tokens + sampling.read_stop,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop_token_ids=[] if sampling.read_stop else list(sampling.stop_token_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=extra or None,
        )
        self._engine.add_request(request_id, {"type": "token", "prompt_token_ids": token_ids}, params)

    def _forget_drafts(self) -> None:
        """Take the drafts away that stand for captured states: to verify them on a CPU biases what is sampled."""
        for request in self._scheduler.running:
            request.spec_token_ids = []

    def _end_stopped(self) -> None:
        """Give requests that read the token that stopped them the length at which their next token ends them."""
        for request in self._scheduler.running:
            stops = (request.sampling_params.extra_args or {}).get(_READ_STOP) if request.sampling_params else None
            if stops and request.num_output_tokens and stops_at(request.output_token_ids[-2:], stops) is not None:
                request.max_tokens = min(request.max_tokens, request.num_output_tokens + 1)

    def _answer(self, output: Any) -> EngineAnswer | None:
        answer = _answer(output)
        sampling = None if answer is None else self._read_stop.pop(answer.request_id, None)
        if answer is None or sampling is None:
            return answer
        end = stops_at(answer.token_ids[: sampling.max_tokens], sampling.stop_token_ids)
        read = answer.token_ids[: sampling.max_tokens if end is None else end + 1]
        return EngineAnswer(
            request_id=answer.request_id, token_ids=read, stop_reason="length" if end is None else "stop"
        )

    def _call(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        return list(self._engine.engine_core.collective_rpc(method, None, args))

    def _counters(self) -> dict[str, float | list[float]]:
        found: dict[str, float | list[float]] = {}
        for metric in self._engine.get_metrics():
            if (values := getattr(metric, "values", None)) is not None:
                found[metric.name] = list(values)
            elif (value := getattr(metric, "value", None)) is not None:
                found[metric.name] = value
        return found


class _ArgumentError(Exception):
    """An argument of the recipe that vLLM does not take."""


def failure_of(error: BaseException) -> EngineFailure:
    """Tell what the user can change from what memory or the engine is to blame for."""
    reason = " ".join(_message(error).split())[:600]
    words = reason.lower()
    if isinstance(error, MemoryError) or any(word in words for word in _MEMORY_WORDS):
        return EngineFailure(kind="memory", reason=reason)
    is_argument = isinstance(error, _ArgumentError | ValueError | TypeError | NotImplementedError)
    return EngineFailure(kind="argument" if is_argument else "engine", reason=reason)


def _message(error: BaseException) -> str:
    """Return an error's text; of pydantic's, the first mistake without the page about it."""
    details = getattr(error, "errors", None)
    if callable(details) and (mistakes := details()):
        first = mistakes[0]
        place = ".".join(str(part) for part in first.get("loc", ()))
        return f"{place}: {first.get('msg', '')}" if place else str(first.get("msg", ""))
    return str(error) or type(error).__name__


def _answer(output: Any) -> EngineAnswer | None:
    if not output.finished:
        return None
    completion = output.outputs[0]
    return EngineAnswer(
        request_id=output.request_id,
        token_ids=tuple(completion.token_ids),
        stop_reason=str(completion.finish_reason),
    )


def _end_with_parent(lifeline: int) -> None:
    """Kill this process and those that it started once the other end of a pipe closes."""
    while os.read(lifeline, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Start the engine that the first message describes, report that it is ready, and serve."""
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # whoever started this process decides
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    setup: EngineSetup = connection.recv()
    try:
        host = Host(connection, setup)
        connection.send(("ready", None))
        host.serve()
    except BaseException as error:
        traceback.print_exc()
        connection.send(("dead", failure_of(error)))
        raise


if __name__ == "__main__":
    main()
