"""The EAGLE-1/2 draft: its tensors, the configs that it follows, its mask."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, Phi3Config, PretrainedConfig, Qwen3Config

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama_v12 import EagleLlamaAttention, LlamaEagleDraftModel, _build_causal_mask
from eaglepipe.eagle.registry import EAGLE1_DRAFT_REGISTRY, resolve_eagle1_draft_spec
from eaglepipe.errors import DraftError
from tests.eagle.toy_eagle1 import KEYS, LLAMA, VOCAB, make_draft


def test_state_dict_has_exactly_the_documented_keys_and_round_trips(tmp_path: Path) -> None:
    draft = make_draft()
    tensors = draft.state_dict()
    assert set(tensors) == KEYS
    assert tensors["fc.weight"].shape == (16, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    other = LlamaEagleDraftModel(draft.config)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert all(torch.equal(value, tensors[name]) for name, value in other.state_dict().items())


def test_deeper_layers_have_an_input_norm_and_a_configured_bias_has_its_place() -> None:
    config = draft_config_from_target(LlamaConfig(**LLAMA), num_hidden_layers=2)
    config.bias = True
    names = set(LlamaEagleDraftModel(config).state_dict())
    assert "fc.bias" in names and "layers.1.input_layernorm.weight" in names
    assert "layers.0.input_layernorm.weight" not in names and not any(name.startswith("norm") for name in names)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, rope_theta=5e5),
        Phi3Config(**LLAMA, pad_token_id=0, rms_norm_eps=1e-4),
        Qwen3Config(**LLAMA, head_dim=12),
    ],
    ids=lambda config: config.model_type,
)
def test_dense_configs_build_a_draft_that_follows_them(config: PretrainedConfig) -> None:
    draft = make_draft(config)
    names = set(draft.state_dict())
    head_dim = getattr(config, "head_dim", None) or 4
    assert draft.layers[0].self_attn.q_proj.weight.shape == (4 * head_dim, 16)
    assert ("layers.0.self_attn.q_proj.bias" in names) == bool(getattr(config, "attention_bias", False))
    assert ("layers.0.mlp.up_proj.bias" in names) == bool(getattr(config, "mlp_bias", False))
    assert draft.layers[0].post_attention_layernorm.eps == config.rms_norm_eps
    ids = torch.arange(6)[None]
    assert draft(ids, torch.randn(1, 6, 16), torch.ones_like(ids)).shape == (1, 6, 16)


def test_registry_knows_dense_targets_and_names_them_otherwise() -> None:
    assert resolve_eagle1_draft_spec(["Unknown", "Qwen3ForCausalLM"]).draft_cls is LlamaEagleDraftModel
    assert {"LlamaForCausalLM", "Phi3ForCausalLM", "Qwen3ForCausalLM"} <= set(EAGLE1_DRAFT_REGISTRY)
    with pytest.raises(DraftError, match=r"EAGLE-1.*MambaForCausalLM.*LlamaForCausalLM"):
        resolve_eagle1_draft_spec(["MambaForCausalLM"])


def test_embeddings_are_copied_from_module_tensor_or_shards_and_can_be_frozen() -> None:
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    source = nn.Embedding(VOCAB, 16)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        sharded = distribute_tensor(source.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)])
        for given in (source, source.weight, sharded):
            draft = make_draft()
            draft.copy_embeddings_from_target(given)
            assert torch.equal(draft.embed_tokens.weight, source.weight)
    finally:
        distributed.destroy_process_group()
    draft.freeze_embeddings()
    assert not draft.embed_tokens.weight.requires_grad and draft.fc.weight.requires_grad
    with pytest.raises(DraftError, match="do not fit"):
        draft.copy_embeddings_from_target(nn.Embedding(VOCAB, 8))


def test_additive_mask_is_causal_without_padding_and_attends_like_the_bool_one() -> None:
    attention_mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    mask = _build_causal_mask(attention_mask, torch.float32)
    assert mask.shape == (2, 1, 5, 5) and mask.dtype == torch.float32
    for row in range(2):
        for t in range(5):
            for s in range(5):
                readable = (s <= t and bool(attention_mask[row, s])) or s == t
                assert float(mask[row, 0, t, s]) == (0.0 if readable else torch.finfo(torch.float32).min)
    attention = make_draft().layers[0].self_attn
    assert isinstance(attention, EagleLlamaAttention)
    states, positions = torch.randn(2, 5, 16), torch.arange(5).expand(2, 5)
    torch.testing.assert_close(attention(states, mask, positions), attention(states, mask == 0, positions))
    shared = attention._repeat_kv(torch.arange(2.0)[None, :, None, None])
    assert shared.flatten().tolist() == [0, 0, 1, 1]
