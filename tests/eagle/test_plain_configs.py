"""The config of a dense target is a draft's config as it is: what it does not say has the meaning of its family."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, PretrainedConfig, Qwen3Config

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.draft_llama_v12 import EagleLlamaAttention, EagleLlamaMLP, LlamaEagleDraftModel

SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
PLAIN: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "phi3": Phi3Config(**SIZES, partial_rotary_factor=0.5),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, attention_bias=True, rope_theta=5e5),
}


@pytest.fixture(params=PLAIN, name="config")
def plain_config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return PLAIN[request.param]


def test_eagle1_draft_is_the_one_that_the_derived_config_gives(config: PretrainedConfig, tmp_path: Path) -> None:
    before = copy.deepcopy(config.to_dict())
    torch.manual_seed(0)
    plain = LlamaEagleDraftModel(config).eval()
    derived = LlamaEagleDraftModel(draft_config_from_target(config, num_aux_hidden_states=1)).eval()
    derived.load_state_dict(plain.state_dict())
    inputs = torch.arange(10)[None], torch.randn(1, 10, 32), torch.ones(1, 10)
    assert torch.equal(plain(*inputs), derived(*inputs))
    assert config.to_dict() == before

    plain.save_pretrained(tmp_path)
    assert torch.equal(LlamaEagleDraftModel.from_pretrained(tmp_path)(*inputs), plain(*inputs))


def test_eagle1_draft_gains_no_key_of_eagle3(config: PretrainedConfig) -> None:
    written = LlamaEagleDraftModel(config).config.to_dict()
    assert not {"draft_vocab_size", "num_aux_hidden_states", "target_hidden_size", "fc_norm"} & written.keys()


def test_eagle3_draft_is_the_one_that_the_derived_config_gives(config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    plain = LlamaEagle3DraftModel(config).eval()
    derived = LlamaEagle3DraftModel(draft_config_from_target(config)).eval()
    derived.load_state_dict(plain.state_dict())
    ids, aux = torch.arange(10)[None], torch.randn(1, 10, 3 * 32)
    states = [draft(ids, draft.project_hidden_states(aux)) for draft in (plain, derived)]
    assert torch.equal(*states)
    assert plain.compute_logits(states[0]).shape == (1, 10, 67)


def test_a_layers_parts_take_the_config_as_well(config: PretrainedConfig) -> None:
    head_dim = getattr(config, "head_dim", None) or 8
    attention, mlp = EagleLlamaAttention(config), EagleLlamaMLP(config)
    assert attention.q_proj.weight.shape == (4 * head_dim, 32)
    assert (attention.q_proj.bias is not None) == bool(getattr(config, "attention_bias", False))
    assert (mlp.up_proj.bias is not None) == bool(getattr(config, "mlp_bias", False))
