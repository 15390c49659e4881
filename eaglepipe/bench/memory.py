"""`bench memory`: growth of both stages' peak memory, and of a token's cost in training, with the corpus.

Each run is a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
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
class CorpusRun:
    """Both stages on one corpus; peaks are resident bytes."""

    tokens: int
    cache_bytes: int
    precompute_bytes: int
    train_bytes: int
    tokens_per_s: float  # of training's own steps, evaluations and start-up left out


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """Both stages, on a corpus and on one `times` times larger."""

    times: int
    small: CorpusRun
    large: CorpusRun

    def to_json(self) -> dict[str, Any]:
        """Return peaks, rates and their growth; `train_cost_growth` is that of a token's time in training."""
        small, large = self.small, self.large
        return {
            "times": self.times,
            "small_tokens": small.tokens,
            "large_tokens": large.tokens,
            "large_cache_bytes": large.cache_bytes,
            "precompute": {"small_bytes": small.precompute_bytes, "large_bytes": large.precompute_bytes},
            "train": {"small_bytes": small.train_bytes, "large_bytes": large.train_bytes},
            "small_tokens_per_s": small.tokens_per_s,
            "large_tokens_per_s": large.tokens_per_s,
            "precompute_growth": large.precompute_bytes / small.precompute_bytes - 1.0,
            "train_growth": large.train_bytes / small.train_bytes - 1.0,
            "train_cost_growth": small.tokens_per_s / large.tokens_per_s - 1.0,
        }

    def table(self) -> str:
        fields, runs = self.to_json(), (self.small, self.large)
        rows = [
            (
                stage,
                *(f"{fields[stage][size] / 1e6:,.0f} MB" for size in ("small_bytes", "large_bytes")),
                f"{fields[f'{stage}_growth']:.1%}",
            )
            for stage in ("precompute", "train")
        ]
        times = (f"{1e6 / run.tokens_per_s:,.0f} µs/tok" for run in runs)
        rows.append(("train, time", *times, f"{fields['train_cost_growth']:.1%}"))
        table = text_table({"peak memory": "left", "small": "right", "large": "right", "growth": "right"}, rows)
        return (
            f"corpus of {self.small.tokens:,} tokens, and of {self.large.tokens:,}, "
            f"whose cache is {self.large.cache_bytes / 1e6:,.0f} MB\n{table}"
        )


def measure_memory(times: int = 16) -> MemoryReport:
    """Run both stages through the command line on generated token rows and a small random target."""
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as name:
        small, large = (_run_both(Path(name) / str(factor), SAMPLES * factor) for factor in (1, times))
    return MemoryReport(times=times, small=small, large=large)


def _run_both(folder: Path, num_samples: int) -> CorpusRun:
    write_target(folder / "target", TARGET_SHAPE, MAX_TOKENS)
    # Lengths repeat, so that the larger corpus differs in its size alone.
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN_TOKENS), 0.6, SAMPLES).clip(8, MAX_TOKENS).astype(int)
    rows, vocab_size = np.resize(lengths, num_samples).tolist(), TARGET_SHAPE.vocab_size
    write_token_rows(folder / "rows.jsonl", rows, vocab_size=vocab_size, assistant_share=0.55)
    recipe_file = folder / "memory.yaml"
    recipe_file.write_text(yaml.safe_dump(_recipe(folder)))
    precompute_bytes, cache = _peak_bytes("precompute", recipe_file)
    train_bytes, trained = _peak_bytes("train", recipe_file)
    return CorpusRun(
        tokens=cache["tokens"],
        cache_bytes=cache["bytes"],
        precompute_bytes=precompute_bytes,
        train_bytes=train_bytes,
        tokens_per_s=trained["tokens_per_s"],
    )


def _recipe(folder: Path) -> dict[str, Any]:
    recipe = stage_one_recipe(
        folder, max_length=MAX_TOKENS, draft_size=TARGET_SHAPE.draft_vocab_size, batch_tokens=2048
    )
    recipe["cache"]["shard_bytes"] = 8 * 2**20
    recipe["draft"] = {"intermediate_size": 128}
    recipe["train"] = {
        "output_dir": str(folder / "run"),
        "device": "cpu",
        "dtype": "float32",
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
