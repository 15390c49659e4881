"""Tiny random targets of many architectures, made from their configs."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Cohere2Config,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.load import LoadedTarget, auto_class, load_target

VOCAB, HIDDEN, LAYERS = 67, 32, 7
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
NO_HEAD_DIM = {key: value for key, value in SHAPE.items() if key != "head_dim"}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE),
    "qwen3-moe": Qwen3MoeConfig(**SHAPE, **MOE),
    "mixtral": MixtralConfig(**SHAPE, **MOE),
    "gpt-oss": GptOssConfig(
        **SHAPE, **MOE, sliding_window=8, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "gemma2": Gemma2Config(**SHAPE, final_logit_softcapping=0.5, sliding_window=8),
    "gemma3": Gemma3Config(
        text_config={**SHAPE, "final_logit_softcapping": 0.7, "sliding_window": 8},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "granite": GraniteConfig(**SHAPE, logits_scaling=8.0, residual_multiplier=0.5, embedding_multiplier=3.0),
    "cohere2": Cohere2Config(**SHAPE, logit_scale=0.25, sliding_window=8),
    "phi3": Phi3Config(**NO_HEAD_DIM),
    "phi": PhiConfig(**NO_HEAD_DIM),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, bos_token_id=1, eos_token_id=2
    ),
}


def make_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model with weights large enough that every part matters, biases included."""
    torch.manual_seed(seed)
    model = auto_class(config).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save_target(config: PretrainedConfig, folder: Path, **save_options: Any) -> Path:
    make_model(config).save_pretrained(folder, **save_options)
    return folder


def tiny_target(name: str, folder: Path, dtype: str = "float32") -> LoadedTarget:
    return load_target(TargetConfig(path=str(save_target(CONFIGS[name], folder)), dtype=dtype), "cpu")
