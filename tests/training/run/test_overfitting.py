"""A small corpus whose training half lies half of the time: what is true is learned first, the lies by heart later."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from eaglepipe.cache.types import CachedSample
from eaglepipe.train import train_from
from eaglepipe.training.data.order import split_samples
from tests.training.tiny_source import DRAFT_VOCAB, HIDDEN, NUM_AUX, TinySource, as_bytes, tiny_recipe, tiny_source

NUM_SAMPLES, NUM_TOKENS, USED_TOKENS, HELDOUT = 60, 16, 6, 0.6


def lying_source() -> TinySource:
    """Each token's successor is fixed; in samples that train, half of the target's distributions name another."""
    names = [f"lying:{i}" for i in range(NUM_SAMPLES)]
    train = set(split_samples(names, HELDOUT).train.tolist())
    base, tables = tiny_source(1, supervision="dense"), np.random.default_rng(0)
    successor = tables.permutation(USED_TOKENS)
    aux = tables.normal(size=(USED_TOKENS, NUM_AUX * HIDDEN))
    ids = base.vocab.selected_token_ids.numpy()
    samples = []
    for number, name in enumerate(names):
        generator = np.random.default_rng(number)
        tokens = generator.integers(USED_TOKENS, size=NUM_TOKENS)
        lies = (generator.random(NUM_TOKENS) < 0.5) & (number in train)
        top1 = np.where(lies, generator.integers(USED_TOKENS, size=NUM_TOKENS), successor[tokens])
        probs = np.full((NUM_TOKENS, DRAFT_VOCAB), 0.02 / (DRAFT_VOCAB - 1), np.float32)
        probs[np.arange(NUM_TOKENS), top1] = 0.98
        states = aux[tokens] + 0.3 * generator.normal(size=(NUM_TOKENS, NUM_AUX * HIDDEN))
        supervised = np.arange(NUM_TOKENS) < NUM_TOKENS - 1
        samples.append(
            CachedSample(
                sample_id=name,
                source="lying",
                input_ids=ids[tokens].astype(np.int32),
                loss_mask=np.ones(NUM_TOKENS, np.bool_),
                supervised=supervised,
                position_mask=supervised,
                target_top1=np.where(supervised, ids[top1], -1).astype(np.int32),
                draft_mass=supervised.astype(np.float32),
                aux_payload=as_bytes(torch.from_numpy(states.astype(np.float32))),
                aux_scales=None,
                supervision={"target_probs": as_bytes(torch.from_numpy(probs[supervised]))},
            )
        )
    return replace(base, samples=tuple(samples))


def test_training_stops_after_the_peak_of_held_out_acceptance_and_keeps_the_peak(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        epochs=1000,
        max_steps=320,
        ttt_steps=2,
        batch_tokens=256,
        micro_batch_tokens=256,
        heldout_fraction=HELDOUT,
        min_learning_rate_ratio=1.0,
        max_grad_norm=5.0,
        eval_every_steps=10,
        early_stop_patience=12,
        checkpoint_every_steps=1000,
        keep_checkpoints=1,
    )
    result = train_from(recipe, lying_source())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    loss = {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}
    length = {row["step"]: row["simulated_acceptance_length"] for row in rows if row["kind"] == "evaluation"}
    peak = result.best_step

    assert result.stopped_early and result.steps == peak + 120 < 320
    assert length[peak] == max(length.values()) == result.simulated_acceptance_length_end
    assert length[peak] > 2.2 and length[result.steps] < length[peak] - 0.2
    assert np.mean([loss[step] for step in range(result.steps - 9, result.steps + 1)]) < 0.9 * np.mean(
        [loss[step] for step in range(peak - 9, peak + 1)]
    )
    kept = load_file(next((tmp_path / "checkpoints").glob(f"*{peak}*")) / "draft.safetensors")
    published = load_file(tmp_path / "draft" / "model.safetensors")
    assert all(torch.equal(published[name], tensor) for name, tensor in kept.items())
