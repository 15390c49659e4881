"""Comparable times: everything that is compared runs in turn in one process, in several rounds, and medians count.

A machine that slows down slows the reference down with it.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from eaglepipe.errors import ConfigError

Result = TypeVar("Result")


def median_seconds(work: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return each entry's median over `rounds`; an entry runs its work and returns the seconds that it took.

    Every second round goes through the entries backwards, so that none always comes after the same other one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name in list(work)[:: -1 if number % 2 else 1]:
            seconds[name].append(work[name]())
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(action: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Return an action's wall seconds, with everything it queued on the device, and its result."""
    synchronise(device)
    started = time.perf_counter()
    result = action()
    synchronise(device)
    return time.perf_counter() - started, result


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of some work, by the clock and by the processor, all threads together."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(wall=self.wall + other.wall, cpu=self.cpu + other.cpu)


def spent(action: Callable[[], Result], device: torch.device) -> tuple[Spent, Result]:
    """Return as `timed`, with the seconds of the processor."""
    started = time.process_time()
    wall, result = timed(action, device)
    return Spent(wall=wall, cpu=time.process_time() - started), result


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench_device(kind: str, purpose: str) -> torch.device:
    """Return the device, or raise ConfigError if `purpose` needs a CUDA device and there is none."""
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{purpose} needs a CUDA device, and this machine has none; the cpu presets run here")
    return torch.device(kind)
