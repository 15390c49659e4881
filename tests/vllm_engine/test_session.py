"""An engine's process answers, fails in one line, and never outlives the process that started it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eaglepipe.errors import ConfigError, EaglepipeError, ResourceError, StoppedError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.vllm_engine.messages import EngineSampling
from eaglepipe.vllm_engine.session import Engine, open_engine
from tests.processes import start
from tests.vllm_engine.standin import DIES, HANGS, KILLED, NO_MEMORY, install_standin

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    install_standin(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    return folder


@contextmanager
def engine(**arguments: object) -> Iterator[Engine]:
    target = TargetConfig(path="/target", dtype="float32", engine="vllm", engine_args=arguments)
    with open_engine(target, Path("/target"), max_length=64, report=lambda _: None) as opened:
        yield opened


def ask(opened: Engine, *first: int) -> list[tuple[str, tuple[int, ...]]]:
    for token in first:
        opened.add(f"r{token}", [token, 5], EngineSampling(max_tokens=1))
    return [(answer.request_id, answer.token_ids) for answer in opened.finished()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(*pids: int) -> None:
    end = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_answers_come_with_the_ids_of_their_requests_and_calls_reach_every_worker() -> None:
    with engine() as opened:
        assert sorted(ask(opened, *range(40))) == sorted((f"r{token}", (token + 1,)) for token in range(40))
        nothing, (method, argument, *pids) = opened.call("look", 7)
        assert (nothing, method, argument) == (None, "look", 7)
    wait_until_dead(*pids)


@pytest.mark.parametrize(
    ("first", "kind", "message"),
    [
        (DIES, EaglepipeError, "vLLM failed: a kernel failed; its last lines:"),
        (NO_MEMORY, ResourceError, "vLLM has not enough memory: CUDA out of memory. Lower gpu_memory_utilization"),
        (KILLED, ResourceError, "vLLM was killed, mostly because memory ran out"),
    ],
    ids=["dies", "no memory", "killed"],
)
def test_an_engine_that_dies_says_why(first: int, kind: type[EaglepipeError], message: str) -> None:
    with engine() as opened, pytest.raises(kind) as failure:
        ask(opened, 1, first)
    assert type(failure.value) is kind
    assert message in str(failure.value)
    assert "\n  loading /target" in str(failure.value)
    assert "Traceback" not in str(failure.value) and "File " not in str(failure.value)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"quantisation": "fp8"}, ConfigError, "quantisation: vLLM's engine has no such argument; did you mean quant"),
        ({"quantization": "absent"}, ConfigError, "vLLM refuses them: quantization absent is not supported"),
        ({"gpu_memory_utilization": 2}, ResourceError, "Free memory is less than desired"),
    ],
    ids=["unknown", "value", "memory"],
)
def test_arguments_that_cannot_be_used_are_refused_in_words(
    arguments: dict[str, object], kind: type[EaglepipeError], message: str
) -> None:
    with pytest.raises(kind) as refusal, engine(**arguments):
        pass
    assert message in str(refusal.value)
    assert kind is not ConfigError or "\n" not in str(refusal.value)


def test_a_signal_stops_the_wait_for_an_engine_that_hangs() -> None:
    pids, started = [], 0.0
    with pytest.raises(StoppedError, match="stopped by SIGTERM"), engine() as opened:
        pids = [pid for answer in opened.call("look") if answer is not None for pid in answer[1:]]
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        ask(opened, HANGS)
    assert time.monotonic() - started < 2
    assert len(pids) == 2
    wait_until_dead(*pids)


def test_a_process_that_is_killed_takes_its_engine_along(standin: Path, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    child = start(_hold_an_engine, standin, told, PYTHONPATH=os.environ["PYTHONPATH"])
    end = time.monotonic() + 120
    while not told.exists():
        assert child.is_running and time.monotonic() < end
        time.sleep(0.01)
    pids = [int(pid) for pid in told.read_text().split()]
    assert all(map(is_alive, pids))
    child.send_signal(signal.SIGKILL)
    wait_until_dead(*pids)


def _hold_an_engine(standin: Path, told: Path) -> None:
    sys.path.insert(0, str(standin))
    with engine() as opened:
        (found,) = [answer for answer in opened.call("look") if answer is not None]
        told.with_suffix(".part").write_text(f"{found[-2]} {found[-1]}")
        told.with_suffix(".part").rename(told)
        ask(opened, HANGS)
