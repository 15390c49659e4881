"""Targets of random weights and rows of random tokens: what stage 1 reads in a benchmark."""

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eaglepipe.bench.made_cache import TargetShape, make_turns


def write_target(folder: Path, shape: TargetShape, max_length: int) -> None:
    """Save a Llama of random weights in a shape, without a tokenizer."""
    fields = shape.config(max_length)
    del fields["architectures"], fields["model_type"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**fields))
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)


def write_token_rows(path: Path, lengths: Iterable[int], *, vocab_size: int, assistant_share: float) -> None:
    """Write tokenised conversations of random ids as JSONL, one of each length."""
    rng = np.random.default_rng(0)
    with path.open("w") as stream:
        for length in lengths:
            mask = (make_turns(length, assistant_share) > 0).astype(int)
            row = {"input_ids": rng.integers(0, vocab_size, length).tolist(), "loss_mask": mask.tolist()}
            stream.write(json.dumps(row) + "\n")


def stage_one_recipe(folder: Path, *, max_length: int, draft_size: int, batch_tokens: int) -> dict[str, Any]:
    """Return the sections of a recipe that stage 1 reads, for `target`, `rows.jsonl` and `caches` in a folder."""
    rows = {"path": str(folder / "rows.jsonl"), "format": "tokenized"}
    return {
        "name": "bench",
        "target": {"path": str(folder / "target")},
        "data": {"sources": [rows], "max_length": max_length},
        "vocab": {"draft_size": draft_size},
        "cache": {"root": str(folder / "caches"), "profile": "exact"},
        "precompute": {"batch_tokens": batch_tokens, "device": "cpu"},
    }
