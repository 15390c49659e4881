"""One long sample, trained on by one process and by several that share it: the same step, and its peak of memory.

    python -m tests.training.long_contexts equal --tokens 65536
    python -m tests.training.long_contexts memory --tokens 8192 16384 32768 65536
    python -m tests.training.long_contexts stage-one --tokens 4096 8192 16384 32768

`equal` and `memory` take an optimizer step in fresh processes (gloo), through loader, decoder and learner. A peak is
the most resident memory of a process during the step, less what it had before: the growth that the length causes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.types import CachedSample
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.training.data.batch import DataPosition
from eaglepipe.training.data.loader import Loader
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.run.learner import Learner
from eaglepipe.training.run.optim import trainable_parameters
from eaglepipe.training.run.ranks.distributed import join_world
from eaglepipe.training.run.run_plan import plan_run
from tests.ranks import rank_variables
from tests.training.tiny_source import TARGET_CONFIG, TinySource, tiny_vocab

VOCAB, DRAFT_VOCAB, HIDDEN, NUM_AUX, STEPS = 512, 256, 64, 3, 3
TURN, ANSWER = 2048, 512
"""Tokens of a turn, and of its answer at the end, which is supervised."""
MIB = 2**20


def long_source(num_tokens: int) -> TinySource:
    """One sample of random states, bfloat16, as the cache stores them."""
    generator = torch.Generator().manual_seed(num_tokens)
    supervised = np.arange(num_tokens) % TURN >= TURN - ANSWER
    supervised[-1] = False
    rows = torch.randn(int(supervised.sum()), HIDDEN, generator=generator)
    aux = torch.randn(num_tokens, NUM_AUX * HIDDEN, generator=generator)
    covered = supervised & (torch.rand(num_tokens, generator=generator).numpy() < 0.9)
    sample = CachedSample(
        sample_id="long",
        source="made",
        input_ids=torch.randint(VOCAB, (num_tokens,), generator=generator).numpy().astype(np.int32),
        loss_mask=supervised,
        supervised=supervised,
        position_mask=covered,
        target_top1=np.where(supervised, 1, -1).astype(np.int32),
        draft_mass=supervised.astype(np.float32),
        aux_payload=aux.bfloat16().view(torch.uint8).numpy(),
        aux_scales=None,
        supervision={"last_hidden_states": rows.bfloat16().view(torch.uint8).numpy()},
    )
    spec = ShardSpec(
        supervision="hidden",
        aux_codec="bf16",
        supervision_codec="bf16",
        aux_layer_ids=(2, 4, 5),
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        draft_vocab_size=DRAFT_VOCAB,
    )
    head = torch.randn(VOCAB, HIDDEN, generator=generator) * HIDDEN**-0.5
    ids = torch.arange(0, VOCAB, VOCAB // DRAFT_VOCAB)
    tensors = {
        "embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator),
        "lm_head.weight": head[ids],
        "norm.weight": torch.ones(HIDDEN),
    }
    return LongSource(
        identity="long",
        samples=(sample,),
        spec=spec,
        max_length=num_tokens,
        vocab=tiny_vocab(ids, VOCAB),
        tensors=tensors,
    )


class LongSource(TinySource):
    @property
    def target_config(self) -> dict[str, Any]:
        sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN}
        return {**TARGET_CONFIG, **sizes, "max_position_embeddings": 2**17}


def long_recipe(num_tokens: int, ranks: int, chunk_tokens: int) -> Recipe:
    train = {
        "caches": ["in memory"],
        "device": "cpu",
        "dtype": "float32",
        "ttt_steps": STEPS,
        "heldout_fraction": 0.0,
        "batch_tokens": 2**20,
        "micro_batch_tokens": -(-num_tokens // ranks),
        "sequence_parallel": ranks,
        "chunk_tokens": chunk_tokens,
    }
    data = {"sources": [{"path": "nowhere.jsonl"}]}
    return parse_recipe({"name": "long", "target": {"path": "nowhere"}, "data": data, "train": train})


def take_step(num_tokens: int, ranks: int, chunk_tokens: int, result: Path) -> None:
    """Take one optimizer step; write loss, summed gradients, new weights and the peak of this process."""
    recipe, source = long_recipe(num_tokens, ranks, chunk_tokens), long_source(num_tokens)
    with join_world("cpu") as world:
        plan = plan_run(source, recipe.train, world)
        learner = Learner(source, build_draft(source, recipe.train, recipe.draft), recipe.train, world)
        gradients: dict[str, torch.Tensor] = {}

        def keep() -> None:
            for name, parameter in trainable_parameters(learner.draft).items():
                assert parameter.grad is not None
                gradients[f"gradient.{name}"] = parameter.grad.clone()

        before = start_of_peak()
        objective = learner.objective
        costs = learner.costs(source.index, training=True)
        steps = plan_steps(plan.order, costs, limits=plan.limits, start=DataPosition())
        draw = partial(objective.draw, training=True)
        with Loader(
            source, steps, draw=draw, columns=objective.columns, device=world.device, prefetch_batches=1
        ) as loader:
            header, batches = next(iter(loader))
            outcome = learner.step(batches, world.sum(header.counts), 1e-4, keep)
        peak = peak_bytes() - before
        loss = world.sum(outcome.loss.double())
    tensors = {**gradients, **{f"weight.{name}": value for name, value in learner.draft_tensors().items()}}
    save_file({name: value.contiguous() for name, value in tensors.items()}, f"{result}.{world.rank}.safetensors")
    Path(f"{result}.{world.rank}.json").write_text(json.dumps({"loss": float(loss), "peak": peak}))


def start_of_peak() -> int:
    """Begin to measure; returns the resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def run_ranks(num_tokens: int, ranks: int, chunk_tokens: int, folder: Path) -> tuple[list[dict[str, Any]], Path]:
    """Take the step in fresh processes; returns what each measured, and the tensors of the first."""
    result = folder / f"{num_tokens}-{ranks}-{chunk_tokens}"
    command = [sys.executable, "-m", __spec__.name, "step", "--tokens", str(num_tokens), "--ranks", str(ranks)]
    command += ["--chunk", str(chunk_tokens), "--result", str(result)]
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen(command, env={**shared, **variables}) for variables in rank_variables(ranks)]
    assert all(child.wait() == 0 for child in children)
    measured = [json.loads(Path(f"{result}.{rank}.json").read_text()) for rank in range(ranks)]
    return measured, Path(f"{result}.0.safetensors")


def show_equal(num_tokens: int, chunk_tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (alone, *_), single = run_ranks(num_tokens, 1, chunk_tokens, Path(folder))
        (first, *_), shared = run_ranks(num_tokens, 2, chunk_tokens, Path(folder))
        tensors, others = load_file(single), load_file(shared)
    print(f"{num_tokens} tokens: loss {alone['loss']:.9f} alone, {first['loss']:.9f} on two")
    assert abs(first["loss"] / alone["loss"] - 1) < 1e-6
    for kind in ("gradient", "weight"):
        pairs = [(tensors[name], others[name]) for name in tensors if name.startswith(kind)]
        worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        print(f"largest difference of a {kind}, relative to the largest of its tensor: {worst:.2g}")
        assert worst < 1e-5


def show_memory(lengths: list[int], chunk_tokens: int) -> None:
    print("| tokens | one process, MiB | one, no chunks | each of two |")
    peaks: dict[str, list[float]] = {"one": [], "whole": [], "two": []}
    with tempfile.TemporaryDirectory() as folder:
        for tokens in lengths:
            for name, ranks, chunk in (("one", 1, chunk_tokens), ("whole", 1, 2**20), ("two", 2, chunk_tokens)):
                measured, _ = run_ranks(tokens, ranks, chunk, Path(folder))
                peaks[name].append(max(one["peak"] for one in measured))
            row = [peaks[name][-1] / MIB for name in ("one", "whole", "two")]
            print(f"| {tokens} | " + " | ".join(f"{value:.0f}" for value in row) + " |", flush=True)
    for name, values in peaks.items():
        slope = np.polyfit(lengths, values, 1)[0]
        print(f"{name}: {slope:.0f} bytes a token")


def read_long(num_tokens: int, chunk_tokens: int, folder: Path) -> Iterator[int]:
    """Read one sequence by a random target in pieces, each dropped; yields the peak, and that of one forward."""
    target = HFEagle3TargetModel(load_target(TargetConfig(path=str(folder)), "cpu"), (2, 4, 6))
    ids = torch.randint(VOCAB, (num_tokens,), generator=torch.Generator().manual_seed(0)).numpy().astype(np.int32)
    for size in (chunk_tokens, num_tokens):
        before = start_of_peak()
        for _ in target.capture_pieces(ids, size):
            pass
        yield peak_bytes() - before


def show_stage_one(lengths: list[int], chunk_tokens: int) -> None:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=8 * HIDDEN,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=2**17,
    )
    print(f"| tokens | in pieces of {chunk_tokens}, MiB | in one forward |")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        for tokens in lengths:
            pieces, whole = (value / MIB for value in read_long(tokens, chunk_tokens, Path(folder)))
            print(f"| {tokens} | {pieces:.0f} | {whole:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "memory", "stage-one", "step"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    if given.what == "equal":
        show_equal(given.tokens[-1], given.chunk)
    elif given.what == "memory":
        show_memory(given.tokens, given.chunk)
    elif given.what == "stage-one":
        show_stage_one(given.tokens, given.chunk)
    else:
        take_step(given.tokens[0], given.ranks, given.chunk, given.result)


if __name__ == "__main__":
    main()
