"""From a recipe's target to the arguments of vLLM's engine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eaglepipe.freed_memory import KEEPING
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.identity import computing_dtype
from eaglepipe.target.load import read_model_config

_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_ROOM_FOR_CAPTURE = 0.85  # of a device's memory; the rest holds head and encoders beside the engine


def engine_arguments(
    target: TargetConfig,
    folder: Path,
    *,
    max_length: int,
    seed: int,
    speculative: Mapping[str, Any] | None,
    kv_transfer: Mapping[str, Any] | None,
    worker_extension: str | None,
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the arguments of an engine that serves token ids; the recipe's `engine_args` decide over defaults.

    Args:
        max_length: tokens of the longest request, those that are generated included.
        defaults: arguments that the recipe may set otherwise.
        overrides: arguments that decide over the recipe's.
    """
    arguments: dict[str, Any] = {
        "max_model_len": max_length,
        "enable_chunked_prefill": True,
        **({"gpu_memory_utilization": _ROOM_FOR_CAPTURE} if torch.cuda.is_available() else _cpu_defaults()),
        **(defaults or {}),
        **target.engine_args,
        **(overrides or {}),
        "model": str(folder),
        "dtype": _dtype(target, folder),
        "trust_remote_code": target.trust_remote_code,
        "seed": seed,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
    }
    optional = {
        "speculative_config": speculative,
        "kv_transfer_config": kv_transfer,
        "worker_extension_cls": worker_extension,
    }
    return arguments | {name: value for name, value in optional.items() if value is not None}


def engine_environment(arguments: Mapping[str, Any], device: str) -> dict[str, str]:
    """Return the environment of an engine's process: one process, its own devices, local files, no statistics.

    Args:
        device: `auto`, or the first device, `cuda:1` say; under torchrun each rank's engine has devices of its own.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_TORCHRUN}
    return {
        # On CPU, threads are bound to cores by rank, and two engines of one machine would share them.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **({} if torch.cuda.is_available() else KEEPING),
        **inherited,
        **_visible_devices(arguments, device),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one position more than the target has, for a token that is never read
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    }


def _visible_devices(arguments: Mapping[str, Any], device: str) -> dict[str, str]:
    """Return the variable that shows an engine its GPUs, where it may not use the first ones."""
    per_engine = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
    _, _, number = device.partition(":")
    local_rank = os.environ.get("LOCAL_RANK")
    first = int(number) if number else int(local_rank) * per_engine if local_rank is not None else 0
    if first == 0 or not torch.cuda.is_available():
        return {}
    shown = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = shown or [str(index) for index in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[first : first + per_engine])}


def _cpu_defaults() -> dict[str, Any]:
    """Return the arguments of an engine on CPU: no compilation, and a fixed part of the memory for its cache."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"enforce_eager": True, "kv_cache_memory_bytes": min(4 * 2**30, total // 8)}


def _dtype(target: TargetConfig, folder: Path) -> str:
    """Return the dtype in which the target computes, where vLLM would choose a narrower one for float32."""
    if target.dtype != "auto":
        return target.dtype
    return computing_dtype(folder, read_model_config(folder, target))
