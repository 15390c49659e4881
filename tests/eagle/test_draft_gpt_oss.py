"""The gpt-oss draft turns its heads as the target does."""

import math

import pytest
import torch
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding, apply_rotary_pos_emb

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_gpt_oss import GptOssEagle3DraftModel
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.layers.rope import apply_rotary
from eaglepipe.eagle.registry import resolve_eagle3_draft_spec
from eaglepipe.errors import DraftError

YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
POSITIONS = torch.tensor([[0, 1, 2, 63, 4095, 4096, 20_000, 131_071]])


def target_config(**rope) -> GptOssConfig:
    """gpt-oss's own heads and positions on a small vocabulary."""
    return GptOssConfig(vocab_size=50, num_hidden_layers=8, rope_parameters={**YARN, **rope})


def small_draft(**rope) -> GptOssEagle3DraftModel:
    sizes = {"hidden_size": 48, "intermediate_size": 32, "num_attention_heads": 6, "num_key_value_heads": 2}
    return GptOssEagle3DraftModel(draft_config_from_target(target_config(**rope), **sizes))


def test_gpt_oss_gets_its_own_draft():
    assert resolve_eagle3_draft_spec(["GptOssForCausalLM"]).draft_cls is GptOssEagle3DraftModel
    assert issubclass(GptOssEagle3DraftModel, LlamaEagle3DraftModel)


def test_queries_are_turned_exactly_as_in_the_target():
    query = torch.randn(1, 3, POSITIONS.shape[1], 64, generator=torch.Generator().manual_seed(0))
    cos, sin = GptOssRotaryEmbedding(target_config())(query, POSITIONS)
    expected, _ = apply_rotary_pos_emb(query, query, cos, sin)
    tables = small_draft().model.rotary_emb(POSITIONS)
    for table, of_target in zip(tables, (cos, sin), strict=True):
        torch.testing.assert_close(table, torch.cat((of_target, of_target), -1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        apply_rotary(query, *(table[:, None] for table in tables)), expected, rtol=1e-6, atol=1e-6
    )


def test_frequencies_and_scale_are_those_of_the_formula():
    """YaRN without rounding its two corner dimensions; cos and sin times 0.1·ln(factor) + 1."""
    corners = [32 * math.log(4096 / (turns * 2 * math.pi)) / math.log(150000.0) for turns in (32.0, 1.0)]
    kept = [min(1.0, max(0.0, 1 - (i - corners[0]) / (corners[1] - corners[0]))) for i in range(32)]
    plain = [150000.0 ** (-i / 32) for i in range(32)]
    frequencies = torch.tensor([f * k + f / 32.0 * (1 - k) for f, k in zip(plain, kept, strict=True)])
    cos, sin = small_draft().model.rotary_emb(torch.tensor([1]))
    scale = 0.1 * math.log(32.0) + 1.0
    torch.testing.assert_close(cos[0, :32], scale * frequencies.cos(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin[0, 32:], scale * frequencies.sin(), rtol=1e-6, atol=1e-6)


def test_heads_keep_their_size_whatever_the_hidden_size():
    config = draft_config_from_target(target_config())
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (2880, 64, 8)
    assert config.head_dim == 64 and config.attention_bias is True
    draft = small_draft()
    layer = draft.model.layers[0].self_attn
    assert layer.q_proj.weight.shape == (6 * 64, 2 * 48) and layer.o_proj.weight.shape == (48, 6 * 64)


def test_tensors_of_a_draft_for_the_real_target_have_the_shapes_that_engines_load():
    target = target_config()
    target.vocab_size = 201_088
    config = draft_config_from_target(target, draft_vocab_size=32_000, intermediate_size=17_280, attention_bias=False)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in GptOssEagle3DraftModel(config).state_dict().items()}
    layer = "model.layers.0."
    assert {name.removeprefix(layer): shape for name, shape in shapes.items() if name.startswith(layer)} == {
        "hidden_norm.weight": (2880,),
        "input_layernorm.weight": (2880,),
        "post_attention_layernorm.weight": (2880,),
        "self_attn.q_proj.weight": (4096, 5760),
        "self_attn.k_proj.weight": (512, 5760),
        "self_attn.v_proj.weight": (512, 5760),
        "self_attn.o_proj.weight": (2880, 4096),
        "mlp.gate_proj.weight": (17_280, 2880),
        "mlp.up_proj.weight": (17_280, 2880),
        "mlp.down_proj.weight": (2880, 17_280),
    }
    assert {name: shape for name, shape in shapes.items() if not name.startswith(layer)} == {
        "d2t": (32_000,),
        "t2d": (201_088,),
        "model.embed_tokens.weight": (201_088, 2880),
        "model.fc.weight": (2880, 8640),
        "model.norm.weight": (2880,),
        "lm_head.weight": (32_000, 2880),
    }


def test_biases_can_be_left_out_for_engines_that_load_none():
    config = draft_config_from_target(target_config(), attention_bias=False)
    assert config.attention_bias is False


def test_partial_rotary_is_refused_with_its_value():
    with pytest.raises(DraftError, match=r"partial_rotary_factor is 0\.5, but gpt-oss turns whole heads"):
        small_draft(partial_rotary_factor=0.5)
