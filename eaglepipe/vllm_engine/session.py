"""An engine of vLLM for as long as a block runs, in a process of its own that dies with this one."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from eaglepipe.errors import ConfigError, EaglepipeError, ResourceError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.signals import StopFlag, stop_on_signals
from eaglepipe.vllm_engine.arguments import engine_arguments, engine_environment
from eaglepipe.vllm_engine.log import last_lines
from eaglepipe.vllm_engine.messages import EngineAnswer, EngineFailure, EngineSampling, EngineSetup
from eaglepipe.vllm_engine.requirements import engine_python, require_vllm

_POLL_SECONDS = 0.2
_CLOSING_SECONDS = 5
_NOTHING_LOST = "nothing was written that a rerun would miss"


class Engine:
    """A running engine. Requests are answered in any order; `add`, `finished` and `call` belong to one thread."""

    def __init__(
        self, connection: Connection, process: subprocess.Popen[bytes], log: Path, stop: StopFlag, saved: str
    ) -> None:
        self._connection, self._process, self._log, self._stop, self._saved = connection, process, log, stop, saved
        self._unfinished: set[str] = set()
        self._answers: deque[EngineAnswer] = deque()

    @property
    def num_unfinished(self) -> int:
        """Requests whose answers `finished` has not returned yet."""
        return len(self._unfinished)

    def add(self, request_id: str, token_ids: Sequence[int], sampling: EngineSampling) -> None:
        """Ask for the continuation of token ids; does not wait.

        Raises:
            EaglepipeError: the engine has died.
        """
        assert request_id not in self._unfinished, request_id
        self._send("add", request_id, list(map(int, token_ids)), sampling)
        self._unfinished.add(request_id)

    def finished(self) -> Iterator[EngineAnswer]:
        """Yield answers as they come until no request is unfinished; more may be added meanwhile.

        Raises:
            StoppedError: a signal asked to stop.
            EaglepipeError: the engine has died; ResourceError if memory ran out.
        """
        while self._unfinished:
            while not self._answers:
                self._receive()
            answer = self._answers.popleft()
            self._unfinished.remove(answer.request_id)
            yield answer

    def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of the worker extension in every worker, between two steps; returns what each returned.

        Raises:
            as `finished`.
        """
        return list(self._ask("call", method, args))

    def counters(self) -> dict[str, float | list[float]]:
        """Return vLLM's metrics by name, if the engine has `disable_log_stats: False`; vectors as lists."""
        return dict(self._ask("counters"))

    def wait_ready(self) -> None:
        """Wait until the engine has started.

        Raises:
            as `finished`; ConfigError: vLLM refuses an argument.
        """
        while self._receive() != "ready":
            pass

    def _ask(self, *message: Any) -> Any:
        self._send(*message)
        self._result: Any = None
        while self._receive() != "result":
            pass
        return self._result

    def _send(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._death(None) from None

    def _receive(self) -> str:
        """Wait for one message and keep its content; returns its name."""
        while not self._connection.poll(_POLL_SECONDS):
            self._stop.raise_if_set(self._saved)
        self._stop.raise_if_set(self._saved)
        try:
            name, content = self._connection.recv()
        except (EOFError, OSError):
            raise self._death(None) from None
        if name == "answers":
            self._answers.extend(content)
        elif name == "result":
            self._result = content
        elif name == "dead":
            raise self._death(content)
        return str(name)

    def _death(self, failure: EngineFailure | None) -> EaglepipeError:
        """Return the error that says why the engine is of no more use."""
        if failure is not None and failure.kind == "argument":
            return ConfigError(f"target.engine_args: vLLM refuses them: {failure.reason}")
        lines = "".join(f"\n  {line}" for line in last_lines(self._log))
        shown = f"; its last lines:{lines}" if lines else ""
        if failure is not None and failure.kind == "memory":
            return ResourceError(
                f"vLLM has not enough memory: {failure.reason}. Lower gpu_memory_utilization, max_model_len or "
                f"max_num_batched_tokens in target.engine_args, or spread the target by tensor_parallel_size{shown}"
            )
        if failure is not None:
            return EaglepipeError(f"vLLM failed: {failure.reason}{shown}")
        code = self._exit_code()
        if code == -signal.SIGKILL:
            return ResourceError(
                f"vLLM was killed, mostly because memory ran out; run the same command again to go on{shown}"
            )
        return EaglepipeError(f"vLLM ended by itself ({_ending(code)}); run the same command again to go on{shown}")

    def _exit_code(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=5)
        return None


@contextmanager
def open_engine(
    target: TargetConfig,
    folder: Path,
    *,
    max_length: int,
    seed: int = 0,
    speculative: Mapping[str, Any] | None = None,
    kv_transfer: Mapping[str, Any] | None = None,
    worker_extension: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    python: Path | None = None,
    device: str = "auto",
    saved: str = _NOTHING_LOST,
    stop: StopFlag | None = None,
    report: Callable[[str], None],
) -> Iterator[Engine]:
    """Start vLLM on the target in a local folder, and end it with the block.

    Args:
        max_length: tokens of the longest request, those that are generated included.
        speculative: vLLM's `speculative_config`.
        kv_transfer: vLLM's `kv_transfer_config`.
        worker_extension: `module.Class` whose methods `Engine.call` reaches.
        defaults: arguments that `target.engine_args` may set otherwise.
        overrides: arguments that decide over `target.engine_args`.
        python: another interpreter, which has vLLM and eaglepipe.
        device: `auto`, or the first of the devices that the engine may use.
        saved: what a stop leaves, as its message has it.
        stop: the flag of a block that has installed the handlers of signals already.

    Raises:
        EaglepipeError: vLLM is missing, or died at the start.
        ConfigError: vLLM refuses an argument.
        ResourceError: not enough memory.
        StoppedError: a signal asked to stop.
    """
    version = require_vllm(python)
    arguments = engine_arguments(
        target,
        folder,
        max_length=max_length,
        seed=seed,
        speculative=speculative,
        kv_transfer=kv_transfer,
        worker_extension=worker_extension,
        defaults=defaults,
        overrides=overrides,
    )
    setup = EngineSetup(arguments=arguments, given=tuple(target.engine_args))
    started = time.monotonic()
    with _stopping(stop) as flag, tempfile.TemporaryDirectory(prefix="eaglepipe-engine-") as scratch:
        log = Path(scratch) / "vllm.log"
        with _process(engine_python(python), log, engine_environment(arguments, device)) as (process, connection):
            engine = Engine(connection, process, log, flag, saved)
            connection.send(setup)
            engine.wait_ready()
            report(f"engine    vLLM {version} started in {time.monotonic() - started:.0f} s")
            yield engine


@contextmanager
def _stopping(stop: StopFlag | None) -> Iterator[StopFlag]:
    if stop is not None:
        yield stop
        return
    with stop_on_signals() as flag:
        yield flag


@contextmanager
def _process(
    python: str, log: Path, environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """Start the engine's process, in a session of its own so that a terminal's Ctrl-C reaches this process only."""
    ours, theirs = socket.socketpair()
    lifeline, held = os.pipe()
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [python, "-m", "eaglepipe.vllm_engine.host", str(theirs.fileno()), str(lifeline)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), lifeline),
                start_new_session=True,
                env=environment,
            )
        theirs.close()
        connection = Connection(ours.detach())
        try:
            yield process, connection
            connection.close()
            with suppress(subprocess.TimeoutExpired):  # workers release what they share
                process.wait(timeout=_CLOSING_SECONDS)
        finally:
            connection.close()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        ours.close()
        theirs.close()
        os.close(lifeline)
        os.close(held)


def _ending(code: int | None) -> str:
    if code is None:
        return "it no longer answers"
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
