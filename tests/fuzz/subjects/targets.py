"""Targets: config.json, generation_config.json and weights."""

import json
import random
from pathlib import Path
from typing import Any

from tests.fuzz.base import Base
from tests.fuzz.safetensors_files import mutate_tensors
from tests.fuzz.values import hostile, json_text, mutate_json_file

_TYPES = ("llama", "qwen3", "gpt_oss", "gemma3", "mixtral", "gpt2", "bert", "t5", "clip", "mamba", "x", "", None)
_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters"),
    *("rope_scaling", "rope_theta", "architectures", "auto_map", "quantization_config", "layer_types"),
    *("text_config", "torch_dtype", "dtype", "tie_word_embeddings", "hidden_act", "sliding_window"),
    *("eos_token_id", "pad_token_id", "attn_implementation", "_attn_implementation", "transformers_version"),
    *("logits_scaling", "final_logit_softcapping", "is_encoder_decoder", "mlp_bias", "attention_dropout"),
    *("pretraining_tp", "use_cache", "initializer_range", "id2label", "_name_or_path"),
)


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    target = base.copy(base.target, folder / "target")
    choice = rng.random()
    if choice < 0.45:
        config = json.loads((target / "config.json").read_text())
        for _ in range(rng.choice((1, 1, 2))):
            config[rng.choice(_FIELDS)] = _value(rng)
        (target / "config.json").write_text(json_text(config), errors="surrogatepass")
    elif choice < 0.6:
        mutate_json_file(target / "config.json", rng)
    elif choice < 0.7:
        mutate_json_file(target / "generation_config.json", rng)
    else:
        mutate_tensors(target / "model.safetensors", rng)
    settings = {"target": {"path": str(target)}, "cache": {"root": str(folder / "caches")}}
    recipe = str(base.write_recipe(folder / "recipe.yaml", **settings))
    output = f"regenerate.output={folder / 'out.jsonl'}"
    commands = (
        ["precompute", "--dry-run", recipe],
        ["data", "preview", recipe],
        ["estimate", recipe],
        ["estimate", "--measure", recipe],
        ["train", "--dry-run", recipe],
        ["data", "regenerate", recipe, output, "regenerate.max_new_tokens=4"],
    )
    return [["precompute", recipe], rng.choice(commands)]


def _value(rng: random.Random) -> Any:
    name = rng.choice(_TYPES)
    near = (name, {"rope_type": name}, [name], "float16", "bfloat16", 16, 32, 128)
    return hostile(rng) if rng.random() < 0.7 else rng.choice(near)
