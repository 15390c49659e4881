"""`bench precompute`: stage 1 on a corpus, against the target's own forward over the same batches.

Stage 1 is everything between a planned cache and its published shards: padding, capture, supervision, codec, hashing,
writing. The reference runs the same batches through the same model and keeps nothing.
"""

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from eaglepipe.bench.made_cache import TargetShape, chat_lengths, make_turns
from eaglepipe.bench.timing import median_seconds, timed
from eaglepipe.cache.manifest import SHARDS_FOLDER
from eaglepipe.chat.types import supervised_tokens
from eaglepipe.precompute.inputs import Stage1Inputs, read_stage1_inputs
from eaglepipe.precompute.layout import Batch
from eaglepipe.precompute.plan import PrecomputePlan, begin_plan
from eaglepipe.precompute.shard_run import ShardRun, Worker, publish_fixed_files
from eaglepipe.recipe.load import load_recipe
from eaglepipe.signals import StopFlag
from eaglepipe.target.capture import HFEagle3TargetModel, pad_sequences
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.layers import find_decoder
from eaglepipe.target.load import load_target

TARGET_SHAPE = TargetShape(
    hidden_size=512,
    intermediate_size=1408,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=16_384,
    draft_vocab_size=8192,
    num_hidden_layers=8,
)


@dataclass(frozen=True, kw_only=True)
class PrecomputeReport:
    """Medians of whole passes over one corpus."""

    samples: int
    tokens: int
    supervised_tokens: int
    batches: int
    padding: float
    seconds: float
    needed_forward_seconds: float  # decoder over all tokens, lm_head over supervised ones
    full_forward_seconds: float  # decoder and lm_head over all tokens, as the model's own forward does
    cache_bytes: int
    threads: int
    rounds: int

    @property
    def ratio(self) -> float:
        """Time, times that of the model's own forward over the same batches."""
        return self.seconds / self.full_forward_seconds

    @property
    def ratio_to_needed(self) -> float:
        """Time, times that of a forward whose lm_head runs for supervised tokens only."""
        return self.seconds / self.needed_forward_seconds

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "ratio": self.ratio,
            "ratio_to_needed": self.ratio_to_needed,
            "tokens_per_s": self.tokens / self.seconds,
            "bytes_per_s": self.cache_bytes / self.seconds,
        }

    def table(self) -> str:
        lines = [
            f"bench precompute: {self.samples:,} samples, {self.tokens:,} tokens, {self.supervised_tokens:,} of them "
            f"supervised, in {self.batches} batches",
            f"  padding {self.padding:.2%}; {self.threads} thread(s), medians of {self.rounds} rounds",
            f"  {'':46} {'seconds':>8} {'tokens/s':>10} {'stage 1 takes':>14}",
        ]
        for name, seconds in (
            (f"stage 1, {self.cache_bytes / 1e6:,.0f} MB written", self.seconds),
            ("the model's forward", self.full_forward_seconds),
            ("the same, lm_head at supervised tokens only", self.needed_forward_seconds),
        ):
            times = f"{self.seconds / seconds:.3f} times"
            lines.append(f"  {name:46} {seconds:>8.2f} {self.tokens / seconds:>10,.0f} {times:>14}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A planned cache and the target that fills it."""

    inputs: Stage1Inputs
    plan: PrecomputePlan
    model: HFEagle3TargetModel

    def batches(self) -> Iterator[Batch]:
        return (batch for shard in self.plan.layout.shards for batch in shard)


def measure_precompute(
    *, shape: TargetShape = TARGET_SHAPE, num_samples: int = 192, batch_tokens: int = 3072, rounds: int = 3
) -> PrecomputeReport:
    """Run stage 1 and two bare forwards in turn, on the CPU, on a random target and tokenised conversations."""
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as name:
        stage = _prepare(Path(name), shape, num_samples, batch_tokens)
        device = stage.model.target.device
        seconds = median_seconds(
            {
                "stage": lambda: _stage_seconds(stage),
                "needed": lambda: timed(lambda: _forward(stage, everywhere=False), device)[0],
                "full": lambda: timed(lambda: _forward(stage, everywhere=True), device)[0],
            },
            rounds,
        )
        lengths = stage.plan.layout.statistics.num_tokens
        batches = list(stage.batches())
        padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
        return PrecomputeReport(
            samples=stage.plan.document.samples,
            tokens=stage.plan.document.tokens,
            supervised_tokens=stage.plan.document.supervised_tokens,
            batches=len(batches),
            padding=1 - stage.plan.document.tokens / padded,
            seconds=seconds["stage"],
            needed_forward_seconds=seconds["needed"],
            full_forward_seconds=seconds["full"],
            cache_bytes=sum(path.stat().st_size for path in (stage.plan.folder / SHARDS_FOLDER).glob("*.arrow")),
            threads=torch.get_num_threads(),
            rounds=rounds,
        )


def _prepare(folder: Path, shape: TargetShape, num_samples: int, batch_tokens: int) -> _Stage:
    """Everything up to the first forward: corpus, target, recipe, plan, and the files that are not shards."""
    lengths = chat_lengths(num_samples, median=120, spread=0.8, longest=1024)
    _write_target(folder / "target", shape, max(lengths))
    _write_rows(folder / "rows.jsonl", lengths, shape.vocab_size)
    recipe_file = folder / "bench.yaml"
    recipe_file.write_text(yaml.safe_dump(_recipe(folder, shape, max(lengths), batch_tokens)))
    inputs = read_stage1_inputs(load_recipe(recipe_file))
    plan = begin_plan(inputs, weights_fingerprint(folder / "target"), report=lambda _: None)
    model = HFEagle3TargetModel(load_target(inputs.recipe.target, "cpu"), inputs.spec.aux_layer_ids)
    publish_fixed_files(inputs, plan, model)
    return _Stage(inputs=inputs, plan=plan, model=model)


def _write_target(folder: Path, shape: TargetShape, max_length: int) -> None:
    fields = {
        key: value for key, value in shape.config(max_length).items() if key not in ("architectures", "model_type")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**fields))
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)


def _write_rows(path: Path, lengths: tuple[int, ...], vocab_size: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w") as stream:
        for length in lengths:
            mask = (make_turns(length, 0.55) > 0).astype(int)
            row = {"input_ids": rng.integers(0, vocab_size, length).tolist(), "loss_mask": mask.tolist()}
            stream.write(json.dumps(row) + "\n")


def _recipe(folder: Path, shape: TargetShape, max_length: int, batch_tokens: int) -> dict[str, Any]:
    return {
        "name": "bench",
        "target": {"path": str(folder / "target")},
        "data": {"sources": [{"path": str(folder / "rows.jsonl"), "format": "tokenized"}], "max_length": max_length},
        "vocab": {"draft_size": shape.draft_vocab_size},
        "cache": {"root": str(folder / "caches"), "profile": "exact"},
        "precompute": {"batch_tokens": batch_tokens, "device": "cpu"},
    }


def _stage_seconds(stage: _Stage) -> float:
    """One pass that finds no shard, and computes and publishes them all."""
    shutil.rmtree(stage.plan.folder / SHARDS_FOLDER, ignore_errors=True)
    run = ShardRun(stage.inputs, stage.plan, stage.model, StopFlag())
    with contextlib.redirect_stderr(io.StringIO()):
        return timed(lambda: run.write_missing(Worker()), stage.model.target.device)[0]


@torch.no_grad()
def _forward(stage: _Stage, *, everywhere: bool) -> None:
    """The same batches through the model; logits of all tokens, or of the supervised ones a chunk at a time."""
    target, chunk = stage.model.target, stage.inputs.recipe.precompute.head_chunk_rows
    decoder = find_decoder(target.model)
    for batch in stage.batches():
        samples = [stage.plan.layout.tokens.read(int(sample)) for sample in batch]
        input_ids, _ = pad_sequences([sample.input_ids for sample in samples])
        if everywhere:
            target.model(input_ids=input_ids, use_cache=False)
            continue
        states = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        rows = [
            states[row, : len(s.turns)][torch.from_numpy(supervised_tokens(s.turns))] for row, s in enumerate(samples)
        ]
        for part in torch.cat(rows).split(chunk):
            stage.model.head_logits(part)
