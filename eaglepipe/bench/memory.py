"""`bench memory`: do peak memory of either stage, or the cost of a token in training, grow with the corpus?

Each run is a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

SAMPLES = 500
MEDIAN_TOKENS, MAX_TOKENS = 120, 512
VOCAB_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Peak resident bytes of one stage on both corpora."""

    small_bytes: int
    large_bytes: int

    @property
    def growth(self) -> float:
        return self.large_bytes / self.small_bytes - 1.0


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """Both stages, on a corpus and on one `times` times larger."""

    times: int
    small_tokens: int
    large_tokens: int
    large_cache_bytes: int
    precompute: StageMemory
    train: StageMemory
    small_tokens_per_s: float  # of training's own steps, evaluations and start-up left out
    large_tokens_per_s: float

    @property
    def cost_growth(self) -> float:
        """How much more time a token takes in training from the larger cache; below 0: less."""
        return self.small_tokens_per_s / self.large_tokens_per_s - 1.0

    def to_json(self) -> dict[str, Any]:
        growth = {"precompute_growth": self.precompute.growth, "train_growth": self.train.growth}
        return {**asdict(self), **growth, "train_cost_growth": self.cost_growth}

    def table(self) -> str:
        lines = [
            f"corpus of {self.small_tokens:,} tokens, and of {self.large_tokens:,}, "
            f"whose cache is {self.large_cache_bytes / 1e6:,.0f} MB",
            f"{'peak memory':12} {'small':>10} {'large':>10} {'growth':>8}",
        ]
        for name, stage in (("precompute", self.precompute), ("train", self.train)):
            small, large = stage.small_bytes / 1e6, stage.large_bytes / 1e6
            lines.append(f"{name:12} {small:>7,.0f} MB {large:>7,.0f} MB {stage.growth:>8.1%}")
        small_us, large_us = 1e6 / self.small_tokens_per_s, 1e6 / self.large_tokens_per_s
        lines.append(f"{'train, time':12} {small_us:>4,.0f} µs/tok {large_us:>4,.0f} µs/tok {self.cost_growth:>8.1%}")
        return "\n".join(lines)


def measure_memory(times: int = 16) -> MemoryReport:
    """Run both stages through the command line on generated token rows and a small random target."""
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as name:
        folder = Path(name)
        _write_target(folder / "target")
        small, large = (_run_both(folder / str(factor), folder / "target", SAMPLES * factor) for factor in (1, times))
    return MemoryReport(
        times=times,
        small_tokens=int(small["tokens"]),
        large_tokens=int(large["tokens"]),
        large_cache_bytes=int(large["bytes"]),
        precompute=StageMemory(small_bytes=int(small["precompute"]), large_bytes=int(large["precompute"])),
        train=StageMemory(small_bytes=int(small["train"]), large_bytes=int(large["train"])),
        small_tokens_per_s=small["tokens_per_s"],
        large_tokens_per_s=large["tokens_per_s"],
    )


def _write_target(folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=7,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_TOKENS,
        )
        LlamaForCausalLM(config).save_pretrained(folder)


def _run_both(folder: Path, target: Path, num_samples: int) -> dict[str, float]:
    folder.mkdir()
    _write_rows(folder / "rows.jsonl", num_samples)
    recipe = folder / "memory.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(folder, target)))
    precompute, result = _peak_bytes("precompute", recipe)
    train, trained = _peak_bytes("train", recipe)
    return {
        "precompute": precompute,
        "train": train,
        "tokens": result["tokens"],
        "bytes": result["bytes"],
        "tokens_per_s": trained["tokens_per_s"],
    }


def _write_rows(path: Path, num_samples: int) -> None:
    """Random rows whose lengths repeat, so that the larger corpus differs in its size alone."""
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN_TOKENS), 0.6, SAMPLES).clip(8, MAX_TOKENS).astype(int)
    rng = np.random.default_rng(1)
    with path.open("w") as stream:
        for sample in range(num_samples):
            length = int(lengths[sample % SAMPLES])
            ids = rng.integers(0, VOCAB_SIZE, length)
            mask = np.arange(length) >= length * 0.45
            stream.write(json.dumps({"input_ids": ids.tolist(), "loss_mask": mask.astype(int).tolist()}) + "\n")


def _recipe(folder: Path, target: Path) -> dict[str, Any]:
    return {
        "name": "memory",
        "target": {"path": str(target)},
        "data": {"sources": [{"path": str(folder / "rows.jsonl"), "format": "tokenized"}], "max_length": MAX_TOKENS},
        "vocab": {"draft_size": 512},
        "cache": {"root": str(folder / "caches"), "profile": "exact", "shard_bytes": 8 * 2**20},
        "precompute": {"batch_tokens": 2048, "device": "cpu"},
        "draft": {"intermediate_size": 128},
        "train": {
            "output_dir": str(folder / "run"),
            "device": "cpu",
            "ttt_steps": 2,
            "batch_tokens": 4096,
            "micro_batch_tokens": 2048,
            "pack_length": MAX_TOKENS,
            "eval_every_steps": 10**6,
            "eval_max_samples": 16,
            "checkpoint_every_steps": 10**6,
        },
    }


def _peak_bytes(stage: str, recipe: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "eaglepipe", stage, str(recipe), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    output, errors = process.stdout, process.stderr
    assert output is not None and errors is not None
    text = output.read()
    message = errors.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, message
    return usage.ru_maxrss * 1024, json.loads(text)
