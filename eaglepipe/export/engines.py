"""The engines that drafts are exported for; `hf` is our own portable layout, which vLLM and SGLang both load."""

from typing import Literal, get_args

Engine = Literal["vllm", "sglang", "speculators", "hf"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
