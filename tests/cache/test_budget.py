"""Bytes a token of each profile, of a real shard at the size of an 8B target: H = 4096, D = 32,000, 60% supervised."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from eaglepipe.cache.samples.record_batch import batch_to_sample
from eaglepipe.cache.schema import ShardSpec, token_cost
from eaglepipe.cache.supervision.columns import to_host
from eaglepipe.cache.supervision.kind import entry_rule, stored_codec
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache.writer import ShardWriter
from eaglepipe.recipe.config import PROFILES, CacheConfig

WIDTH, DRAFT_VOCAB, TOKENS, SUPERVISED = 4096, 32_000, 750, 450
BUDGET = {"exact": 4 * WIDTH * 2 + 13, "compact": 12_700, "lean": 7_900, "tiny": 6_600, "sampled": 4_800}
SETTINGS = {name: {"profile": name} for name in PROFILES} | {"sampled": {"profile": "tiny", "supervision": "sampled"}}


def activations(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Student's t of 3 degrees of freedom, whose tails are heavy, and four channels at 100 times the bulk."""
    squares = torch.randn(3, *shape, WIDTH, generator=generator).square().mean(0)
    states = torch.randn(*shape, WIDTH, generator=generator) / squares.sqrt()
    states[..., [7, 1000, 2047, 4000]] *= 100
    return states.to(torch.bfloat16)


def worst_probs(generator: torch.Generator) -> torch.Tensor:
    """Rows so flat that every one of them reaches the cap."""
    return torch.softmax(torch.randn(SUPERVISED, DRAFT_VOCAB, generator=generator), -1)


def sample_of(cache: CacheConfig, spec: ShardSpec) -> CachedSample:
    generator = torch.Generator().manual_seed(0)
    aux, hidden = activations(generator, TOKENS, 3), activations(generator, SUPERVISED)
    encoded = spec.aux.encode(aux)
    supervised = np.arange(TOKENS) >= TOKENS - SUPERVISED - 1
    rows, rule, input_ids = hidden, entry_rule(cache, end_of_turn=3), np.arange(TOKENS, dtype=np.int32)
    if spec.kind.stores_probabilities:
        rows = worst_probs(generator)
    supervised[-1] = False
    hints = torch.from_numpy(rule.hints("conversations:0123456789abcdef", input_ids, supervised))
    columns = to_host(spec.kind.encode(rows, rule.located(hints, torch.arange(DRAFT_VOCAB)), rule))
    assert not spec.kind.stores_probabilities or columns["num_entries"].min() == rule.max_entries
    return CachedSample(
        sample_id="conversations:0123456789abcdef",
        source="conversations",
        input_ids=input_ids,
        loss_mask=supervised,
        supervised=supervised,
        position_mask=supervised,
        target_top1=np.where(supervised, 1, -1).astype(np.int32),
        draft_mass=supervised.astype(np.float32),
        aux_payload=encoded.payload.numpy(),
        aux_scales=None if encoded.scales is None else encoded.scales.numpy(),
        supervision=columns,
    )


@pytest.mark.parametrize("profile", BUDGET)
def test_profile_keeps_its_budget_in_a_real_shard_and_the_estimate_says_so(tmp_path: Path, profile: str) -> None:
    cache = CacheConfig.model_validate(SETTINGS[profile])
    spec = ShardSpec(
        supervision=cache.supervision,
        aux_codec=cache.aux_codec,
        supervision_codec=stored_codec(cache),
        aux_layer_ids=(2, 16, 29),
        hidden_size=WIDTH,
        vocab_size=128_256,
        draft_vocab_size=DRAFT_VOCAB,
    )
    writer = ShardWriter(tmp_path, 0, spec=spec, identity="0" * 32)
    sample = sample_of(cache, spec)
    for _ in range(2):
        writer.write(sample)
    entry = writer.finish().shard
    written = (tmp_path / entry.path).stat().st_size / (2 * TOKENS)
    entries = entry_rule(cache).max_entries
    estimated = token_cost(spec, supervised_share=SUPERVISED / TOKENS, tokens_per_sample=TOKENS, entries=entries).total
    print(f"{profile}: written {written:,.1f}, estimated {estimated:,.1f}, budget {BUDGET[profile]:,}")
    assert written <= BUDGET[profile]
    assert estimated <= BUDGET[profile]
    assert written == pytest.approx(estimated, rel=0.002)
    batch = pa.ipc.open_file(pa.memory_map(str(tmp_path / entry.path))).get_batch(0)
    again = batch_to_sample(batch, {"sample_id": "", "source": ""})
    for name, column in sample.supervision.items():
        assert np.array_equal(again.supervision[name], column)
