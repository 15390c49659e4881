"""`bench precompute`: stage 1 on a corpus, compared with the target's own forward over the same batches.

Stage 1 is everything between a planned cache and its published shards: padding, capture, supervision, codec, hashing,
writing. The reference runs the same batches through the same model and keeps nothing.
"""

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from eaglepipe.bench.made_cache import CPU_SHAPE, TargetShape, chat_lengths
from eaglepipe.bench.made_project import stage_one_recipe, write_target, write_token_rows
from eaglepipe.bench.timing import median_seconds, timed
from eaglepipe.cache.manifest import SHARDS_FOLDER
from eaglepipe.chat.tokens import supervised_tokens
from eaglepipe.precompute.claims import Worker
from eaglepipe.precompute.inputs import Stage1Inputs, read_stage1_inputs
from eaglepipe.precompute.layout import Group
from eaglepipe.precompute.plan import PrecomputePlan, begin_plan
from eaglepipe.precompute.shard_run import ShardRun, publish_fixed_files
from eaglepipe.recipe.load import load_recipe
from eaglepipe.signals import StopFlag
from eaglepipe.tables import text_table
from eaglepipe.target.capture import HFEagle3TargetModel, pad_sequences
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.layers import find_decoder
from eaglepipe.target.load import load_target

TARGET_SHAPE = replace(CPU_SHAPE, vocab_size=16_384)


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

    def to_json(self) -> dict[str, Any]:
        """Return the fields with rates, and the ratios of stage 1's time to those of the two forwards."""
        return {
            **asdict(self),
            "ratio": self.seconds / self.full_forward_seconds,
            "ratio_to_needed": self.seconds / self.needed_forward_seconds,
            "tokens_per_s": self.tokens / self.seconds,
            "bytes_per_s": self.cache_bytes / self.seconds,
        }

    def table(self) -> str:
        passes = {
            f"stage 1, {self.cache_bytes / 1e6:,.0f} MB written": self.seconds,
            "the model's forward": self.full_forward_seconds,
            "the same, lm_head at supervised tokens only": self.needed_forward_seconds,
        }
        rows = [
            (name, f"{seconds:.2f}", f"{self.tokens / seconds:,.0f}", f"{self.seconds / seconds:.3f} times")
            for name, seconds in passes.items()
        ]
        table = text_table(
            {"": "left", "seconds": "right", "tokens/s": "right", "stage 1 takes": "right"}, rows, indent=2
        )
        return (
            f"bench precompute: {self.samples:,} samples, {self.tokens:,} tokens, {self.supervised_tokens:,} of them "
            f"supervised, in {self.batches} batches\n"
            f"  padding {self.padding:.2%}; {self.threads} thread(s), medians of {self.rounds} rounds\n{table}"
        )


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A planned cache and the target that fills it."""

    inputs: Stage1Inputs
    plan: PrecomputePlan
    model: HFEagle3TargetModel

    def batches(self) -> Iterator[Group]:
        layout, batch_tokens = self.plan.layout, self.inputs.recipe.precompute.batch_tokens
        return (batch for shard in range(len(layout.shards)) for batch in layout.forwards(shard, batch_tokens))


def measure_precompute(
    *,
    shape: TargetShape = TARGET_SHAPE,
    num_samples: int = 192,
    batch_tokens: int = 3072,
    rounds: int = 3,
    device: str = "cpu",
    dtype: str = "auto",
) -> PrecomputeReport:
    """Run stage 1 and two bare forwards in turn, on a random target and tokenised conversations."""
    with tempfile.TemporaryDirectory(prefix="eaglepipe-bench-") as name:
        stage = _prepare(Path(name), shape, num_samples, batch_tokens, device=device, dtype=dtype)
        used = stage.model.target.device
        seconds = median_seconds(
            {
                "stage": lambda: _stage_seconds(stage),
                "needed": lambda: timed(lambda: _forward(stage, everywhere=False), used)[0],
                "full": lambda: timed(lambda: _forward(stage, everywhere=True), used)[0],
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


def _prepare(
    folder: Path, shape: TargetShape, num_samples: int, batch_tokens: int, *, device: str, dtype: str
) -> _Stage:
    """Do all of stage 1 up to the first forward: corpus, target, recipe, plan, and the files that are not shards."""
    lengths = chat_lengths(num_samples, median=120, spread=0.8, longest=1024)
    longest, draft_size = max(lengths), shape.draft_vocab_size
    write_target(folder / "target", shape, longest)
    write_token_rows(folder / "rows.jsonl", lengths, vocab_size=shape.vocab_size, assistant_share=0.55)
    recipe = stage_one_recipe(folder, max_length=longest, draft_size=draft_size, batch_tokens=batch_tokens)
    recipe["target"]["dtype"], recipe["precompute"]["device"] = dtype, device
    recipe_file = folder / "bench.yaml"
    recipe_file.write_text(yaml.safe_dump(recipe))
    inputs = read_stage1_inputs(load_recipe(recipe_file))
    plan = begin_plan(inputs, weights_fingerprint(folder / "target"), report=lambda _: None)
    model = HFEagle3TargetModel(load_target(inputs.recipe.target, device), inputs.spec.aux_layer_ids)
    publish_fixed_files(inputs, plan, model)
    return _Stage(inputs=inputs, plan=plan, model=model)


def _stage_seconds(stage: _Stage) -> float:
    """Time a pass that finds no shard, and computes and publishes them all."""
    shutil.rmtree(stage.plan.folder / SHARDS_FOLDER, ignore_errors=True)
    run = ShardRun(stage.inputs, stage.plan, stage.model, StopFlag())
    with contextlib.redirect_stderr(io.StringIO()):
        return timed(lambda: run.write_missing(Worker()), stage.model.target.device)[0]


@torch.no_grad()
def _forward(stage: _Stage, *, everywhere: bool) -> None:
    """Run the same batches through the model; logits of all tokens, or of the supervised ones a chunk at a time."""
    target, chunk = stage.model.target, stage.inputs.recipe.precompute.head_chunk_rows
    decoder = find_decoder(target.model)
    for batch in stage.batches():
        samples = [stage.plan.layout.tokens.read(int(sample)) for sample in batch]
        input_ids, _ = pad_sequences([sample.input_ids for sample in samples])
        input_ids = input_ids.to(target.device)
        if everywhere:
            target.model(input_ids=input_ids, use_cache=False)
            continue
        states = decoder(input_ids=input_ids, use_cache=False).last_hidden_state
        rows = [
            states[row, : len(s.turns)][torch.from_numpy(supervised_tokens(s.turns))] for row, s in enumerate(samples)
        ]
        for part in torch.cat(rows).split(chunk):
            stage.model.head_logits(part)
