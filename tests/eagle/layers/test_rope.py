"""Rotary tables against transformers' own module, for every type it initialises."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding, apply_rotary_pos_emb

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.layers.fused_ops import rotate
from eaglepipe.eagle.layers.rope import Eagle3LlamaRotaryEmbedding, apply_rotary
from eaglepipe.errors import DraftError
from tests.eagle.toy_drafts import target_config

HALF_HEAD = 16
LONG_ROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.01 * i for i in range(HALF_HEAD)],
    "long_factor": [1.0 + 0.5 * i for i in range(HALF_HEAD)],
    "original_max_position_embeddings": 32,
    "factor": 2.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROPES = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    LLAMA3,
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16, "truncate": False},
    LONG_ROPE,
)


def config_with(rope, **overrides):
    sizes = {"head_dim": 2 * HALF_HEAD, "hidden_size": 64, **overrides}
    return target_config(rope_parameters={"rope_theta": 5000.0, **rope}, **sizes)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("length", [20, 32, 64, 150])
def test_tables_equal_transformers_own(rope, length):
    target = config_with(rope)
    draft = draft_config_from_target(target)
    positions = torch.arange(length)[None]
    expected = LlamaRotaryEmbedding(target)(torch.zeros(1), positions)
    found = Eagle3LlamaRotaryEmbedding(draft)(positions)
    for table, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(table, wanted, rtol=1e-6, atol=1e-6)


PARTIAL_LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [3.0 + i for i in range(8)]}


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, PARTIAL_LONG_ROPE])
@pytest.mark.parametrize("length", [9, 40])
def test_partial_rotary_turns_only_the_first_part_of_a_head(rope, length):
    target = Phi3Config(
        hidden_size=64,
        num_attention_heads=2,
        pad_token_id=0,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters={"rope_theta": 5000.0, "partial_rotary_factor": 0.5, **rope},
    )
    positions = torch.arange(length)[None]
    query = torch.randn(1, 2, length, 32)
    cos, sin = Phi3RotaryEmbedding(target)(query, positions)
    assert cos.shape[-1] == 16
    expected, _ = apply_rotary_pos_emb(query, query, cos, sin)
    tables = Eagle3LlamaRotaryEmbedding(draft_config_from_target(target))(positions)
    found = apply_rotary(query, *(table[:, None] for table in tables))
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[..., 16:], query[..., 16:])


def test_length_dependent_frequencies_follow_the_longest_sequence_given():
    rotary = Eagle3LlamaRotaryEmbedding(draft_config_from_target(config_with(LONG_ROPE)))
    positions = torch.arange(20)
    short, _ = rotary(positions)
    long, _ = rotary(positions, longest=torch.tensor(33))
    of_a_long_batch, _ = rotary(torch.arange(33))
    assert not torch.equal(short, long)
    assert torch.equal(long, of_a_long_batch[:20])


def test_casting_the_module_rounds_no_frequency():
    config = draft_config_from_target(config_with(LLAMA3))
    positions = torch.arange(64)
    exact = Eagle3LlamaRotaryEmbedding(config)(positions)
    cast = Eagle3LlamaRotaryEmbedding(config).bfloat16()(positions)
    assert all(torch.equal(a, b) for a, b in zip(exact, cast, strict=True))


def test_unknown_rope_type_is_named():
    config = draft_config_from_target(target_config())
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1.0}
    with pytest.raises(DraftError, match="spiral"):
        Eagle3LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("rotated", [4, 10])
def test_fused_rotation_equals_the_plain_one_and_its_gradient(rotated):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 3, 10, generator=generator, dtype=torch.float64).requires_grad_()
    angles = torch.randn(7, 1, rotated // 2, generator=generator, dtype=torch.float64).repeat(1, 1, 2)
    weights = torch.randn(7, 3, 10, generator=generator, dtype=torch.float64)
    plain = apply_rotary(states, 1.2 * angles.cos(), 1.2 * angles.sin())
    fused = rotate(states, 1.2 * angles.cos(), 1.2 * angles.sin())
    torch.testing.assert_close(fused, plain)
    expected = torch.autograd.grad((plain * weights).sum(), states)[0]
    torch.testing.assert_close(torch.autograd.grad((fused * weights).sum(), states)[0], expected)
