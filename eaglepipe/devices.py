"""The device that a run computes on, and its speed."""

import re
import time
from typing import Literal

import torch

from eaglepipe.errors import ConfigError

_DIMENSION = {"cpu": 1024, "cuda": 8192}


def resolve_device(device: str, local_rank: int | None = None) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` names; `auto` takes CUDA if there is any.

    Args:
        local_rank: under torchrun, each process takes the CUDA device of its local rank.

    Raises:
        ConfigError: another kind of device, or a CUDA device that this machine does not have.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device {device!r} is not one of auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    index = int(device.partition(":")[2] or 0) if local_rank is None else local_rank
    if index >= count:
        raise ConfigError(f"device {device!r}: torch sees {count} CUDA device(s) here; use cpu or auto")
    return torch.device("cuda", index)


def auto_dtype(device: torch.device) -> tuple[Literal["float32", "bfloat16"], str]:
    """Return the dtype that products are fastest in, of those that training supports, and the reason.

    AVX512-BF16 without AMX does not pay: a training step takes 1.45 times as long as in float32.
    """
    if device.type == "cuda":
        return "bfloat16", "CUDA devices multiply it fastest"
    if torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx():
        return "bfloat16", "this processor multiplies it fastest, by AMX"
    return "float32", "this processor has no AMX, without which bfloat16 is slower"


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Measure the FLOP/s of a square matrix product in `dtype`, for so many seconds."""
    size = _DIMENSION.get(device.type, 1024)
    matrix = torch.randn(size, size, device=device).to(dtype)
    _synchronise(device)
    (matrix @ matrix).sum().item()
    repeats, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        matrix @ matrix
        _synchronise(device)
        repeats += 1
    return 2 * size**3 * repeats / (time.perf_counter() - started)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
