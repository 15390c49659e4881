"""Draft configs from target configs as model repositories spell them, older keys included."""

from typing import Any

import pytest
import torch

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_gpt_oss import GptOssYarnRotaryEmbedding
from eaglepipe.eagle.layers.rope import Eagle3LlamaRotaryEmbedding
from eaglepipe.errors import DraftError

COMMON = {"vocab_size": 1000, "num_hidden_layers": 8, "max_position_embeddings": 131_072}
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}


def config(model_type: str, width: int, heads: tuple[int, int], **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads[0]}
    return {"model_type": model_type, **COMMON, **sizes, "num_key_value_heads": heads[1], **more}


PHI4_MINI = config(
    "phi3", 3072, (24, 8), pad_token_id=0, original_max_position_embeddings=4096, partial_rotary_factor=0.75,
    rope_theta=1e4, rope_scaling={"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
)  # fmt: skip
GEMMA3 = config("gemma3_text", 2560, (8, 4), head_dim=256, rope_scaling={"rope_type": "linear", "factor": 8.0})
LLAMA4 = config(
    "llama4_text", 5120, (40, 8), head_dim=128, rope_theta=5e5,
    rope_scaling={"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
                  "original_max_position_embeddings": 8192},
)  # fmt: skip
DEEPSEEK = config(
    "deepseek_v3", 7168, (128, 128), kv_lora_rank=512, qk_rope_head_dim=64, v_head_dim=128, rope_theta=1e4,
    rope_scaling={"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0,
                  "mscale_all_dim": 1.0},
)  # fmt: skip
OLMO3 = config("olmo3", 4096, (32, 32), rope_theta=5e5, rope_scaling={**YARN, "factor": 8.0, "attention_factor": 1.25})
GPT_OSS = config("gpt_oss", 2880, (64, 8), head_dim=64, attention_bias=True, rope_theta=1.5e5, rope_scaling=YARN)
SMOLLM3 = config("smollm3", 2048, (16, 4), rope_theta=5e6)


# Heads, key-value heads, head_dim; rotated dimensions, rope type, theta.
@pytest.mark.parametrize(
    ("target", "heads", "rope"),
    [
        (PHI4_MINI, (24, 8, 128), (96, "longrope", 1e4)),
        ({"model_type": "gemma3", "text_config": GEMMA3}, (8, 4, 256), (256, "linear", 1e6)),
        ({"model_type": "llama4", "text_config": LLAMA4}, (40, 8, 128), (128, "llama3", 5e5)),
        (DEEPSEEK, (56, 8, 128), (128, "yarn", 1e4)),
        (OLMO3, (32, 32, 128), (128, "yarn", 5e5)),
        (GPT_OSS, (64, 8, 64), (64, "yarn", 1.5e5)),
        (SMOLLM3, (16, 4, 128), (128, "default", 5e6)),
    ],
    ids=["phi-4-mini", "gemma-3", "llama-4", "deepseek-v3", "olmo-3", "gpt-oss", "smollm3"],
)
def test_heads_and_positions_of_published_targets(
    target: dict[str, Any], heads: tuple[int, int, int], rope: tuple[int, str, float]
) -> None:
    draft = draft_config_from_target(target)
    assert (draft.num_attention_heads, draft.num_key_value_heads, draft.head_dim) == heads
    cos, _ = Eagle3LlamaRotaryEmbedding(draft)(torch.arange(3)[None])
    assert (cos.shape[-1], draft.rope_parameters["rope_type"], draft.rope_parameters["rope_theta"]) == rope


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 0}, "cannot be used"),
        ({"hidden_size": 0}, "says hidden_size is 0"),
        ({"intermediate_size": None}, "intermediate_size"),
        ({"rms_norm_eps": "a"}, "rms_norm_eps"),
        ({"rope_scaling": 5}, "cannot be used"),
    ],
)
def test_a_config_that_makes_no_sense_is_told(change: dict[str, Any], words: str) -> None:
    with pytest.raises(DraftError, match=words):
        draft_config_from_target({**config("llama", 64, (4, 2)), **change})


def test_attention_is_scaled_as_the_target_says() -> None:
    """OLMo 3 writes the factor down; DeepSeek's two cancel each other out."""
    for target, factor in ((OLMO3, 1.25), (DEEPSEEK, 1.0)):
        cos, _ = Eagle3LlamaRotaryEmbedding(draft_config_from_target(target))(torch.zeros(1, dtype=torch.long))
        assert cos[0, 0].item() == pytest.approx(factor)


def test_partial_rotary_is_refused_for_gpt_oss_in_the_older_spelling_too() -> None:
    draft = draft_config_from_target({**GPT_OSS, "partial_rotary_factor": 0.5})
    with pytest.raises(DraftError, match=r"partial_rotary_factor is 0\.5"):
        GptOssYarnRotaryEmbedding(draft)
