"""A stand-in for the package vllm: it has what the engine's process uses, and ends or hangs when it is asked to."""

from pathlib import Path

DIES, KILLED, HANGS, NO_MEMORY = 901, 902, 903, 904
"""First tokens of prompts: the engine fails in a step, is killed, never answers, or runs out of memory."""

_FILES = {
    "vllm/__init__.py": "class SamplingParams:\n    def __init__(self, **fields): self.__dict__.update(fields)\n",
    "vllm/sampling_params.py": "class RequestOutputKind:\n    FINAL_ONLY = 2\n",
    "vllm/engine/__init__.py": "",
    "vllm/engine/arg_utils.py": """
from dataclasses import dataclass
@dataclass
class EngineArgs:
    model: str
    dtype: str
    max_model_len: int
    trust_remote_code: bool
    seed: int
    skip_tokenizer_init: bool
    enable_prefix_caching: bool
    enable_chunked_prefill: bool = True
    enforce_eager: bool = False
    kv_cache_memory_bytes: int = 0
    gpu_memory_utilization: float = 0.9
    quantization: str | None = None
""",
    "vllm/v1/__init__.py": "",
    "vllm/v1/engine/__init__.py": "",
    "vllm/v1/engine/llm_engine.py": f"""
import os, signal, subprocess, sys, time
from types import SimpleNamespace as Object
class LLMEngine:
    def __init__(self, args):
        print("INFO 11-27 10:00:00 [core.py:1] loading", args.model)
        if args.quantization == "absent":
            raise ValueError("quantization absent is not\\nsupported")
        if args.gpu_memory_utilization > 1:
            raise ValueError("Free memory is less than desired GPU memory utilization")
        self.child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # a worker
        self.requests = []
        core = Object(scheduler=Object(has_requests=lambda: bool(self.requests)))
        self.engine_core = Object(engine_core=core, collective_rpc=self.call, shutdown=self.child.kill)
    @classmethod
    def from_engine_args(cls, args): return cls(args)
    def call(self, method, timeout, args): return [None, (method, *args, os.getpid(), self.child.pid)]
    def has_unfinished_requests(self): return bool(self.requests)
    def add_request(self, request_id, prompt, params): self.requests.append((request_id, prompt, params))
    def step(self):
        request_id, prompt, params = self.requests.pop()
        first = prompt["prompt_token_ids"][0]
        if first == {DIES}: raise RuntimeError("a kernel failed")
        if first == {NO_MEMORY}: raise MemoryError("CUDA out of memory")
        if first == {KILLED}: os.kill(os.getpid(), signal.SIGKILL)
        if first == {HANGS}: time.sleep(600)
        ids = [token + 1 for token in prompt["prompt_token_ids"]][: params.max_tokens]
        done = Object(token_ids=ids, finish_reason="length")
        return [Object(request_id=request_id, finished=True, outputs=[done])]
""",
}


def install_standin(folder: Path) -> None:
    """Write the package, with the version of one that is supported."""
    for name, text in _FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    info = folder / "vllm-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
