"""Arguments of a target's engine: those that eaglepipe gives itself, and those that change no state beyond rounding."""

from collections.abc import Mapping
from typing import Any

_OWN = {
    "model": "set target.path",
    "tokenizer": "the engine is given token ids, made with the tokenizer in target.path",
    "skip_tokenizer_init": "the engine is given token ids, and needs no tokenizer",
    "revision": "set target.revision",
    "dtype": "set target.dtype",
    "trust_remote_code": "set target.trust_remote_code",
    "seed": "each command has its own seed",
    "speculative_config": "it is made by the command",
    "kv_transfer_config": "it is made by the command",
    "worker_extension_cls": "it is made by the command",
    "data_parallel_size": "start one process for each share, with --workers i/n",
    "runner": "the target generates",
    "enable_prefix_caching": "states of cached prefixes are not computed again, so it stays off",
    "enable_return_routed_experts": "nothing reads them",
}
_RUNNING = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "cpu_offload_gb",
        "cudagraph_capture_sizes",
        "data_parallel_backend",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enforce_eager",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "load_format",
        "long_prefill_token_threshold",
        "max_cudagraph_capture_size",
        "max_long_partial_prefills",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "numa_bind",
        "num_gpu_blocks_override",
        "optimization_level",
        "pipeline_parallel_size",
        "safetensors_load_strategy",
        "scheduling_policy",
        "swap_space",
        "tensor_parallel_size",
        "use_tqdm_on_load",
    }
)
"""Arguments about memory, devices and scheduling."""


def check_engine_args(args: Mapping[str, Any]) -> None:
    """Check the arguments of a recipe that no engine needs to judge.

    Raises:
        ValueError: one that eaglepipe gives itself, or a length that is none.
    """
    for name in args:
        if (plain := name.lstrip("-").replace("-", "_")) != name:
            raise ValueError(f"engine_args.{name}: write it as {plain}")
        if name in _OWN:
            raise ValueError(f"engine_args.{name}: {_OWN[name]}")
    length = args.get("max_model_len")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 2):
        raise ValueError(f"engine_args.max_model_len is {length!r}, and no number of tokens from 2 on")


def content_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that may change states, or which samples have them; unknown ones may."""
    return {name: value for name, value in sorted(args.items()) if name not in _RUNNING}
