"""A target's config builds a draft as it is: depth, rope in older spellings, and what has no single meaning."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, PretrainedConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.draft_llama_v12 import EagleLlamaAttention, LlamaEagleDraftModel
from eaglepipe.eagle.layers.rope import Eagle3LlamaRotaryEmbedding

SIZES: dict[str, Any] = {
    "vocab_size": 37, "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config, Phi3Config, PretrainedConfig])
def test_eagle3_draft_of_a_deep_target_has_one_layer(kind: type[PretrainedConfig], tmp_path: Path) -> None:
    config = kind(**SIZES, num_hidden_layers=32)
    config.draft_vocab_size, config.target_hidden_size, config.tie_word_embeddings = 16, 32, True
    before = copy.deepcopy(config.to_dict())
    draft = LlamaEagle3DraftModel(config)
    assert len(draft.model.layers) == draft.config.num_hidden_layers == 1
    assert not draft.config.tie_word_embeddings, "the lm_head has rows of the draft vocabulary"
    assert draft(torch.arange(5)[None], draft.project_hidden_states(torch.randn(1, 5, 96))).shape == (1, 5, 32)
    assert config.to_dict() == before
    draft.save_pretrained(tmp_path)
    assert len(LlamaEagle3DraftModel.from_pretrained(tmp_path).model.layers) == 1


def test_depth_is_kept_where_it_is_the_drafts_own() -> None:
    target = Qwen3Config(**SIZES, num_hidden_layers=8)
    assert len(LlamaEagle3DraftModel(draft_config_from_target(target, num_hidden_layers=3)).model.layers) == 3
    target.draft_num_hidden_layers = 2
    assert len(LlamaEagle3DraftModel(target).model.layers) == len(LlamaEagleDraftModel(target).layers) == 2
    parallel = LlamaConfig(**SIZES, num_hidden_layers=4)
    parallel.parallel_drafting, parallel.mask_token_id = True, 0
    assert len(LlamaEagle3DraftModel(parallel).model.layers) == 4


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("default", {}), ("linear", {"factor": 4.0}), ("dynamic", {"factor": 2.0}), ("llama3", LLAMA3),
     ("yarn", {"factor": 4.0})],
)  # fmt: skip
def test_rope_of_a_plain_config_in_the_older_spelling(key: str, kind: str, more: dict[str, Any]) -> None:
    scaling = {"rope_theta": 5e5, "rope_scaling": {key: kind, **more} if more else None}
    plain = PretrainedConfig(**SIZES, num_hidden_layers=2)
    for name, value in scaling.items():
        setattr(plain, name, value)
    positions = torch.arange(70)[None]
    rope = {"rope_type": kind, "rope_theta": 5e5, **more}
    expected = LlamaRotaryEmbedding(LlamaConfig(**SIZES, rope_parameters=rope))(torch.zeros(1), positions)
    for config in (plain, draft_config_from_target(plain)):
        torch.testing.assert_close(Eagle3LlamaRotaryEmbedding(config)(positions), expected)
    torch.testing.assert_close(EagleLlamaAttention(plain).rotary_emb(positions), expected)
    assert LlamaEagle3DraftModel(plain)(torch.arange(5)[None], torch.randn(1, 5, 32)).isfinite().all()
    assert LlamaEagleDraftModel(plain)(torch.arange(5)[None], torch.randn(1, 5, 32), torch.ones(1, 5)).isfinite().all()


def test_rope_of_a_plain_config_given_when_it_is_made() -> None:
    plain = PretrainedConfig(**SIZES, num_hidden_layers=2, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4})
    rope = LlamaEagle3DraftModel(plain).config.rope_parameters
    assert rope == {"rope_type": "linear", "factor": 4, "rope_theta": 5e5}


def test_rope_scaling_set_on_a_llama_config_later_counts() -> None:
    config = LlamaConfig(**SIZES)
    config.rope_scaling = {"type": "linear", "factor": 4.0}
    config.rope_theta = 7e4
    rope = LlamaEagle3DraftModel(config).config.rope_parameters
    assert rope["rope_type"] == "linear" and rope["factor"] == 4.0


def test_rope_without_a_factor_is_a_value_error() -> None:
    config = PretrainedConfig(**SIZES)
    config.rope_theta, config.rope_scaling = 1e4, {"type": "linear"}
    with pytest.raises(ValueError, match="rope type 'linear' of the draft's config comes without 'factor'"):
        Eagle3LlamaRotaryEmbedding(config)(torch.arange(3)[None])


NESTED = {"full_attention": {"rope_type": "default", "rope_theta": 1e6},
          "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip


def old_gemma3() -> PretrainedConfig:
    return PretrainedConfig(**SIZES, num_hidden_layers=2, rope_theta=1e6, rope_local_base_freq=1e4)


def nested_llama() -> PretrainedConfig:
    config = LlamaConfig(**SIZES)
    config.rope_parameters = NESTED
    return config


def gemma3() -> PretrainedConfig:
    return Gemma3TextConfig(**SIZES, head_dim=8)


@pytest.mark.parametrize("make", [gemma3, nested_llama, old_gemma3])
@pytest.mark.parametrize("build", [Eagle3LlamaRotaryEmbedding, LlamaEagle3DraftModel, LlamaEagleDraftModel])
def test_one_rope_for_each_layer_type_is_refused_with_the_remedy(make: Any, build: Any) -> None:
    with pytest.raises(ValueError, match=r"one rope for each layer type .*draft_config_from_target"):
        build(make())
    assert LlamaEagle3DraftModel(draft_config_from_target(make())).config.rope_parameters["rope_theta"] == 1e6
