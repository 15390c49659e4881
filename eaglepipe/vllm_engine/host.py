"""The process in which vLLM runs: `python -m eaglepipe.vllm_engine.host FD LIFELINE`.

It is driven through a connection and ends with the process that started it, however that ended.
"""

import os
import signal
import sys
import threading
import traceback
from dataclasses import fields
from difflib import get_close_matches
from multiprocessing.connection import Connection
from typing import Any

from eaglepipe.vllm_engine.messages import EngineAnswer, EngineFailure, EngineSampling, EngineSetup

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
        self._engine: Any = LLMEngine.from_engine_args(EngineArgs(**setup.arguments))
        self._scheduler = self._engine.engine_core.engine_core.scheduler

    def serve(self) -> None:
        """Handle messages between the engine's steps until the connection closes."""
        while True:
            while self._connection.poll(0 if self._has_work() else None):
                self._handle(*self._connection.recv())
            answers = [answer for output in self._engine.step() if (answer := _answer(output)) is not None]
            if answers:
                self._connection.send(("answers", answers))

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
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"kv_transfer_params": transfer} if transfer else None,
        )
        self._engine.add_request(request_id, {"type": "token", "prompt_token_ids": token_ids}, params)

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
    except EOFError:
        return
    except BaseException as error:
        traceback.print_exc()
        connection.send(("dead", failure_of(error)))
        raise


if __name__ == "__main__":
    main()
