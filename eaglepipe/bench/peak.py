"""Peak memory of a piece of work above what was held when it began.

On the CPU the work runs in a process started for it, and the peak is Linux's own of resident memory (`VmHWM`), set back
just before the work: in a process with a past, memory that the allocator kept would hide part of it.
"""

import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import ParamSpec, TypeVar

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

P = ParamSpec("P")
R = TypeVar("R")


def in_fresh_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of a module in a new process; return its result or raise its exception.

    Whatever ends this process or its wait, a signal that kills included, ends the other one too.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BaseException:
            for child in active_children():
                child.terminate()  # the pool would wait for its work
            raise


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, in the middle of its work."""
    parent = parent_process()
    assert parent is not None, "this process was started by another"

    wait_for_parent = parent.join

    def watch() -> None:
        wait_for_parent()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Run `work` and return the bytes that it held at its peak beyond those held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - before
    with suppress(OSError):  # if the peak cannot be reset, it still counts as far as this work exceeds it
        _CLEAR.write_text(_RESET_PEAK)
    before = _status_bytes("VmRSS")
    work()
    return max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None, f"{_STATUS} has no {field}"
    return int(match[1]) * 1024
