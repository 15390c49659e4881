"""`bench memory`: growth of both stages' peak memory, and of a token's cost in training, with the corpus.

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
import yaml

from eaglepipe.bench.made_cache import TargetShape
from eaglepipe.bench.made_project import stage_one_recipe, write_target, write_token_rows
from eaglepipe.tables import text_table

SAMPLES = 500
MEDIAN_TOKENS, MAX_TOKENS = 120, 512
TARGET_SHAPE = TargetShape(
    hidden_size=128,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=4096,
    draft_vocab_size=512,
    num_hidden_layers=7,
)


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
        """Growth of a token's time in training; below 0 if the larger cache is faster."""
        return self.small_tokens_per_s / self.large_tokens_per_s - 1.0

    def to_json(self) -> dict[str, Any]:
        growth = {"precompute_growth": self.precompute.growth, "train_growth": self.train.growth}
        return {**asdict(self), **growth, "train_cost_growth": self.cost_growth}

    def table(self) -> str:
        rows = [
            (name, f"{stage.small_bytes / 1e6:,.0f} MB", f"{stage.large_bytes / 1e6:,.0f} MB", f"{stage.growth:.1%}")
            for name, stage in (("precompute", self.precompute), ("train", self.train))
        ]
        times = [f"{1e6 / rate:,.0f} µs/tok" for rate in (self.small_tokens_per_s, self.large_tokens_per_s)]
        rows.append(("train, time", times[0], times[1], f"{self.cost_growth:.1%}"))
        table = text_table({"peak memory": "left", "small": "right", "large": "right", "growth": "right"}, rows)
        return (
            f"corpus of {self.small_tokens:,} tokens, and of {self.large_tokens:,}, "
            f"whose cache is {self.large_cache_bytes / 1e6:,.0f} MB\n{table}"
        )


def measure_memory(times: int = 16) -> MemoryReport:
    """Run both stages through the command line on generated token rows and a small random target."""
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as name:
        small, large = (_run_both(Path(name) / str(factor), SAMPLES * factor) for factor in (1, times))
    return MemoryReport(
        times=times,
        small_tokens=small["tokens"],
        large_tokens=large["tokens"],
        large_cache_bytes=large["bytes"],
        precompute=StageMemory(small_bytes=small["precompute"], large_bytes=large["precompute"]),
        train=StageMemory(small_bytes=small["train"], large_bytes=large["train"]),
        small_tokens_per_s=small["tokens_per_s"],
        large_tokens_per_s=large["tokens_per_s"],
    )


def _run_both(folder: Path, num_samples: int) -> dict[str, Any]:
    """Return peak bytes by stage, the cache's tokens and bytes, and training's tokens per second."""
    write_target(folder / "target", TARGET_SHAPE, MAX_TOKENS)
    # Lengths repeat, so that the larger corpus differs in its size alone.
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN_TOKENS), 0.6, SAMPLES).clip(8, MAX_TOKENS).astype(int)
    rows, vocab_size = np.resize(lengths, num_samples).tolist(), TARGET_SHAPE.vocab_size
    write_token_rows(folder / "rows.jsonl", rows, vocab_size=vocab_size, assistant_share=0.55)
    recipe_file = folder / "memory.yaml"
    recipe_file.write_text(yaml.safe_dump(_recipe(folder)))
    precompute, cache = _peak_bytes("precompute", recipe_file)
    train, trained = _peak_bytes("train", recipe_file)
    sizes = {"tokens": cache["tokens"], "bytes": cache["bytes"], "tokens_per_s": trained["tokens_per_s"]}
    return {"precompute": precompute, "train": train, **sizes}


def _recipe(folder: Path) -> dict[str, Any]:
    recipe = stage_one_recipe(
        folder, max_length=MAX_TOKENS, draft_size=TARGET_SHAPE.draft_vocab_size, batch_tokens=2048
    )
    recipe["cache"]["shard_bytes"] = 8 * 2**20
    recipe["draft"] = {"intermediate_size": 128}
    recipe["train"] = {
        "output_dir": str(folder / "run"),
        "device": "cpu",
        "ttt_steps": 2,
        "batch_tokens": 4096,
        "micro_batch_tokens": 2048,
        "pack_length": MAX_TOKENS,
        "eval_every_steps": 10**6,
        "eval_max_samples": 16,
        "checkpoint_every_steps": 10**6,
    }
    return recipe


def _peak_bytes(stage: str, recipe: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "eaglepipe", stage, str(recipe), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    output, errors = process.stdout, process.stderr
    assert output is not None and errors is not None
    text, message = output.read(), errors.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, message
    return usage.ru_maxrss * 1024, json.loads(text)
