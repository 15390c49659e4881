"""A process that no handler of a signal can reach ends all the same, soon, and loses nothing."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from eaglepipe import cli
from eaglepipe.errors import EXIT_STOPPED, EaglepipeError
from eaglepipe.signals import STOP_SIGNALS
from eaglepipe.stop_watch import ends_by_itself, rescued_by, unhurried, watch_stops
from tests.processes import Child, Done, start, start_eaglepipe

SOON = 5.0  # seconds, which hold 2.5 of patience
LONG = 60.0


def begin() -> None:
    """Watch for signals, as the command line does, with handlers that do not stop anything."""
    for number in (*STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    watch_stops(report)


def report(error: EaglepipeError) -> None:
    print(error, flush=True)


def ready() -> None:
    print("ready", flush=True)


def hang() -> None:
    """Keep the main thread in a call that no signal interrupts, as a library does."""
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    ready()
    library.pthread_mutex_lock(mutex)


def hanging() -> None:
    begin()
    hang()


def answering() -> None:
    """End by oneself once a handler has run, within the patience."""
    begin()
    come = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: come.set())
    ready()
    while not come.wait(0.01):
        pass
    time.sleep(1.0)
    print("ended by itself", flush=True)
    sys.exit(7)


def outlasting() -> None:
    """Outlast the patience in a block that must not be cut, and end by oneself some time after it."""
    begin()
    ready()
    with unhurried():
        time.sleep(4.0)
        ends_by_itself()
    time.sleep(0.3)
    print("ended by itself", flush=True)
    sys.exit(7)


def writing(file: Path) -> None:
    """Write pairs of letters, block after block that must not be cut, while the main thread hangs."""
    begin()

    def write() -> None:
        with file.open("w") as stream:
            while True:
                with unhurried():
                    stream.write("a")
                    stream.flush()
                    time.sleep(0.2)
                    with unhurried():  # which begins whenever the one around it has
                        stream.write("b")
                        stream.flush()

    threading.Thread(target=write, daemon=True).start()
    hang()


def rescuing(file: Path) -> None:
    begin()

    def rescue(name: str) -> str:
        with file.open("a") as stream:
            stream.write(name)
        return f"saved {name}"

    with rescued_by(partial(rescue, "outer")), rescued_by(partial(rescue, "inner")):
        with rescued_by(partial(rescue, "over")):
            pass
        hang()


def forking() -> None:
    """Fork a child that is stopped by a signal, and live on."""
    begin()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
        while True:
            time.sleep(0.01)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    ready()
    time.sleep(3.5)  # longer than the patience: neither the child's signal nor its end counts
    print(f"child {os.waitstatus_to_exitcode(status)}", flush=True)


def hang_in_the_command_line() -> None:
    """Have the command line hang as soon as it watches for signals, before it knows the command."""
    cli.end_with_launcher = hang


@dataclass(frozen=True)
class Ended:
    done: Done
    seconds: float  # from the signal on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="module")
def ends(folder: Path) -> Iterator[Mapping[str, Ended]]:
    """All children at once, as each waits for seconds."""
    functions: dict[str, tuple[Callable[..., None], tuple[Path, ...], signal.Signals | None]] = {
        **{f"hanging {number.name}": (hanging, (), number) for number in STOP_SIGNALS},
        "answering": (answering, (), signal.SIGTERM),
        "outlasting": (outlasting, (), signal.SIGTERM),
        "writing": (writing, (folder / "written",), signal.SIGTERM),
        "rescuing": (rescuing, (folder / "rescued",), signal.SIGTERM),
        "forking": (forking, (), None),
    }
    children = {name: start(function, *arguments) for name, (function, arguments, _) in functions.items()}
    functions["command"] = (hang_in_the_command_line, (), signal.SIGTERM)
    children["command"] = start_eaglepipe("recipe", "ls", before=hang_in_the_command_line)
    for child in children.values():
        _wait_until_ready(child)
    sent = time.monotonic()
    for name, (_, _, number) in functions.items():
        if number is not None:
            children[name].send_signal(number)
    ended: dict[str, float] = {}
    while len(ended) < len(children) and time.monotonic() < sent + LONG:
        for name, child in children.items():
            if not child.is_running:
                ended.setdefault(name, time.monotonic() - sent)
        time.sleep(0.01)
    yield {name: Ended(child.wait(1), ended.get(name, LONG)) for name, child in children.items()}


def _wait_until_ready(child: Child) -> None:
    end = time.monotonic() + LONG
    while "ready" not in child.output():
        assert child.is_running and time.monotonic() < end, child.output()
        time.sleep(0.005)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_main_thread_that_hangs_is_ended_soon(ends: Mapping[str, Ended], number: signal.Signals) -> None:
    ended = ends[f"hanging {number.name}"]
    assert ended.done.returncode == EXIT_STOPPED
    assert f"stopped by {number.name}; what was published stays" in ended.done.stdout
    assert 2.0 < ended.seconds < SOON


def test_every_command_is_ended_so(ends: Mapping[str, Ended]) -> None:
    ended = ends["command"]
    assert ended.done.returncode == EXIT_STOPPED and ended.seconds < SOON
    assert ended.done.stderr.startswith("stopped: stopped by SIGTERM; what was published stays")


@pytest.mark.parametrize("name", ["answering", "outlasting"])
def test_a_process_that_answers_ends_by_itself(ends: Mapping[str, Ended], name: str) -> None:
    ended = ends[name]
    assert ended.done.returncode == 7
    assert ended.done.stdout == "ready\nended by itself\n"


def test_blocks_that_must_not_be_cut_are_waited_for(ends: Mapping[str, Ended], folder: Path) -> None:
    ended = ends["writing"]
    assert ended.done.returncode == EXIT_STOPPED and ended.seconds < SOON
    written = (folder / "written").read_text()
    assert len(written) > 2 and written == "ab" * (len(written) // 2)


def test_what_memory_holds_is_saved_first_from_the_inside_out(ends: Mapping[str, Ended], folder: Path) -> None:
    assert (folder / "rescued").read_text() == "innerouter"
    assert "stopped by SIGTERM; saved inner; saved outer" in ends["rescuing"].done.stdout


def test_signals_of_a_forked_child_do_not_end_its_parent(ends: Mapping[str, Ended]) -> None:
    ended = ends["forking"]
    assert ended.done.returncode == 0
    assert ended.done.stdout.endswith("child 3\n")
