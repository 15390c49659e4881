"""Serves drafts in vLLM one after the other, in this process, and records the logits that each drafts from.

    python -m tests.engine.draft_logits JOB.json

A job names the target, the prompt, the depth, and the drafts: for each its folder, whether it drafts in parallel, and
its method and depth if they are not EAGLE-3 and the job's.
The answer lies beside it: `<name>.safetensors` with the logits [depth, V] after the prompt, or `<name>.txt` with the
error with which the draft was refused.
"""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def logits_of(job: dict[str, Any], draft: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """Return the logits of the first round, and the token that the target chose after the prompt."""
    from vllm import LLM, SamplingParams

    depth = draft.get("depth", job["depth"])
    speculative = {"method": draft.get("method", "eagle3"), "model": draft["folder"], "num_speculative_tokens": depth}
    speculative |= {"parallel_drafting": True} if draft["parallel"] else {}
    llm = LLM(
        job["target"], dtype="float32", enforce_eager=True, max_model_len=128, skip_tokenizer_init=True,
        enable_prefix_caching=False, speculative_config=speculative, kv_cache_memory_bytes=64 * 2**20,
    )  # fmt: skip
    model: Any = llm.llm_engine.model_executor.driver_worker.worker.model_runner.drafter.model
    compute, seen = model.compute_logits, []

    def recorded(states: torch.Tensor) -> torch.Tensor:
        seen.append(compute(states).clone())
        return seen[-1]

    model.compute_logits = recorded
    settings = SamplingParams(max_tokens=2, temperature=0, detokenize=False, ignore_eos=True)
    (answer,) = llm.generate({"prompt_token_ids": job["prompt"]}, settings)
    return torch.cat(seen)[:depth], answer.outputs[0].token_ids[0]


def norm_each_layer() -> None:
    """Replace what vLLM's CPU kernel gets wrong: it norms the context keys of every layer by those of the first."""
    from vllm import _custom_ops as ops
    from vllm.model_executor.models.qwen3_dflash import DFlashQwen3Model

    def normed(self: Any, keys: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(keys)
        for layer, weight in enumerate(self._k_norm_weights):
            ops.rms_norm(output[layer], keys[layer], weight, self._rms_norm_eps)
        return output

    DFlashQwen3Model._normalize_context_k = normed


def main(path: Path) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the draft's module is in this process then
    from vllm.distributed import cleanup_dist_env_and_memory

    job = json.loads(path.read_text())
    norm_each_layer()
    for name, draft in job["drafts"].items():
        try:
            logits, token = logits_of(job, draft)
            save_file(
                {"logits": logits.contiguous(), "token": torch.tensor(token)}, path.with_name(f"{name}.safetensors")
            )
        except Exception as error:  # noqa: BLE001 - whatever a loader stops with is its answer
            path.with_name(f"{name}.txt").write_text(f"{type(error).__name__}: {error}")
        gc.collect()
        cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
