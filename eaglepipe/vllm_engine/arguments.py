"""From a recipe's target to the arguments of vLLM's engine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eaglepipe.recipe.config import TargetConfig

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
) -> dict[str, Any]:
    """Return the arguments of an engine that serves token ids; the recipe's `engine_args` decide over defaults.

    Args:
        max_length: tokens of the longest request, those that are generated included.
        defaults: arguments that the recipe may set otherwise.
    """
    arguments: dict[str, Any] = {
        "max_model_len": max_length,
        "enable_chunked_prefill": True,
        "gpu_memory_utilization": _ROOM_FOR_CAPTURE,
        **({} if torch.cuda.is_available() else {"enforce_eager": True}),
        **(defaults or {}),
        **target.engine_args,
        "model": str(folder),
        "dtype": target.dtype,
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


def engine_environment() -> dict[str, str]:
    """Return the environment of an engine's process: one process, local files, no statistics sent anywhere."""
    return {
        # On CPU, threads are bound to cores by rank, and two engines of one machine would share them.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "INFO",
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # one position more than the target has, for a token that is never read
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    }
