"""What engines make of a draft folder: the names and fields that they read, in plain torch.

Written from the loaders' rules, not from the exporter. Like the real loaders it never complains of a tensor that is
missing: that one keeps random values, so that only a right export gives right logits.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A draft as an engine holds it."""

    weights: Weights  # layers.0 names, without prefix
    sizes: dict[str, Any]  # the fields of the transformer
    rope: dict[str, Any]
    boundaries: tuple[int, ...]
    fc_norm: bool
    norm_output: bool
    deeper_norm: str  # the input norm of deeper layers
    target_ids: torch.Tensor  # of the draft ids
    mask_token: int | None = None


def load_as(engine: str, folder: Path, *, depth: int, target_embeddings: torch.Tensor, gpt_oss: bool = False) -> Served:
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    if engine == "vllm":
        return _vllm(config, stored, depth, target_embeddings)
    if engine == "sglang":
        return _sglang(config, stored, depth, target_embeddings, gpt_oss)
    return _speculators(config, stored, depth)


def _vllm(config: dict[str, Any], stored: Weights, depth: int, target_embeddings: torch.Tensor) -> Served:
    assert config["architectures"] == ["LlamaForCausalLMEagle3"] and config["model_type"] == "llama"
    assert config.get("target_hidden_size", 1) is not None
    explicit = config.get("eagle_aux_hidden_state_layer_ids")
    explicit = explicit or config.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids")
    ids = tuple(sorted(set(explicit))) if explicit else (2, depth // 2, depth - 3)
    parallel = any(name in config for name in ("mask_token_id", "pard_token"))
    weights = _initial(config, config, num_aux=config.get("num_aux_hidden_states", 3), parallel=parallel)
    embedded = False
    for name, tensor in stored.items():
        if "t2d" in name:
            continue
        inner = name if name.startswith(("lm_head", "d2t", "mask_hidden")) else f"model.{name}"
        inner = inner.replace("midlayer.", "layers.0.").removeprefix("model.")
        if inner not in weights:
            raise ValueError(f"no module or parameter {inner}")
        embedded |= inner == "embed_tokens.weight"
        weights[inner] = _same_shape(weights[inner], tensor)
    if not embedded:
        weights["embed_tokens.weight"] = target_embeddings
    assert not parallel or "mask_hidden" in stored
    rope = config["rope_parameters"]
    return _served(config, config, weights, rope, ids, "input_layernorm")


def _sglang(
    config: dict[str, Any], stored: Weights, depth: int, target_embeddings: torch.Tensor, gpt_oss: bool
) -> Served:
    assert config["architectures"] == ["LlamaForCausalLMEagle3"] and config["model_type"] == "llama"
    assert "draft_vocab_size" in config and config["tie_word_embeddings"] is False
    explicit = config.get("eagle_config", {}).get("eagle_aux_hidden_state_layer_ids")
    are_boundaries = explicit is not None and gpt_oss and max(explicit) == depth
    ids = (2, depth // 2, depth - 3) if explicit is None else tuple(i if are_boundaries else i + 1 for i in explicit)
    assert gpt_oss or depth not in ids, "no other target captures anything behind its last layer"
    widths = len(ids) * config.get("target_hidden_size", config["hidden_size"])
    assert widths != config["hidden_size"], "fc and fc_norm are skipped"
    weights = _initial(config, config, num_aux=config.get("num_aux_hidden_states", 3), parallel=False)
    for name, tensor in stored.items():
        inner = name.removeprefix("model.").replace("midlayer.", "layers.0.")
        if inner in weights:
            weights[inner] = _same_shape(weights[inner], tensor)
    if "target_hidden_size" not in config or config["target_hidden_size"] == config["hidden_size"]:
        weights["embed_tokens.weight"] = target_embeddings
    rope = {"rope_type": "default", **(config["rope_scaling"] or {}), "rope_theta": config["rope_theta"]}
    return _served(config, {**config, "norm_before_residual": False}, weights, rope, ids, "hidden_norm")


def _speculators(config: dict[str, Any], stored: Weights, depth: int) -> Served:
    assert "model_type" not in config
    assert config["speculators_model_type"] == config["speculators_config"]["algorithm"]
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] > 0
    assert config["speculators_config"]["default_proposal_method"] == "greedy"
    assert {"name_or_path", "architectures"} <= config["speculators_config"]["verifier"].keys()
    layer = config["transformer_layer_config"]
    assert layer["model_type"] == "llama"
    ids = tuple(config.get("eagle_aux_hidden_state_layer_ids") or (2, depth // 2, depth - 3))
    assert layer.get("num_aux_hidden_states", 3) == len(ids)
    parallel = config["speculators_model_type"] == "peagle"
    flags = {**config, "fc_norm": False, "norm_output": False} if parallel else config
    weights = _initial(layer, flags, num_aux=len(ids), parallel=parallel, draft_size=config["draft_vocab_size"])
    for name, tensor in stored.items():
        inner = name.removeprefix("model.")
        if inner in weights:
            weights[inner] = _same_shape(weights[inner], tensor)
    return _served(layer, flags, weights, layer["rope_parameters"], ids, "input_layernorm")


def _served(
    sizes: dict[str, Any],
    config: dict[str, Any],
    weights: Weights,
    rope: dict[str, Any],
    ids: tuple[int, ...],
    norm: str,
) -> Served:
    assert not config["norm_before_residual"]
    draft_ids = torch.arange(len(weights["lm_head.weight"]))
    return Served(
        weights=weights,
        sizes=sizes,
        rope=rope,
        boundaries=ids,
        fc_norm=config["fc_norm"],
        norm_output=config.get("norm_output", False),
        deeper_norm=norm,
        target_ids=draft_ids + weights.get("d2t", torch.zeros_like(draft_ids)),
        mask_token=config.get("mask_token_id"),
    )


def _initial(
    sizes: dict[str, Any], flags: dict[str, Any], *, num_aux: int, parallel: bool, draft_size: int | None = None
) -> Weights:
    """Random values under every name that the engine's modules have."""
    hidden, inner, vocab = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    heads, groups, dim = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["head_dim"]
    states = flags.get("target_hidden_size") or hidden
    rows = draft_size or flags.get("draft_vocab_size") or vocab
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocab, hidden),
        "fc.weight": (hidden, num_aux * states),
        "norm.weight": (hidden,),
        "lm_head.weight": (rows, hidden),
    }
    if flags.get("norm_before_fc"):
        shapes["input_norm.weight"] = (num_aux * states,)
    shapes |= {f"fc_norm.{i}.weight": (states,) for i in range(num_aux) if flags["fc_norm"]}
    if parallel:
        shapes["mask_hidden"] = (1, 1, num_aux * states)
    for layer in range(sizes["num_hidden_layers"]):
        inputs = 2 * hidden if layer == 0 else hidden
        shapes |= {f"layers.{layer}.{norm}.weight": (hidden,) for norm in ("hidden_norm", "input_layernorm")}
        shapes |= {f"layers.{layer}.post_attention_layernorm.weight": (hidden,)}
        shapes |= {f"layers.{layer}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"layers.{layer}.mlp.down_proj.weight": (hidden, inner)}
        attention = {"q": (heads * dim, inputs), "k": (groups * dim, inputs), "v": (groups * dim, inputs)}
        attention["o"] = (hidden, heads * dim)
        shapes |= {f"layers.{layer}.self_attn.{name}_proj.weight": size for name, size in attention.items()}
        if sizes.get("attention_bias"):
            shapes |= {f"layers.{layer}.self_attn.{name}_proj.bias": size[:1] for name, size in attention.items()}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    if rows != vocab:
        weights["d2t"] = torch.zeros(rows, dtype=torch.int64)
    return weights


def _same_shape(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    assert parameter.shape == tensor.shape
    return tensor


def load_features_draft(engine: str, folder: Path, *, target_embeddings: torch.Tensor) -> Served:
    """EAGLE-1/2: vLLM has no bias of fc and ignores a stored one, SGLang always has one."""
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    assert config["architectures"] in (["LlamaForCausalLM"], ["LlamaForCausalLMEagle"])
    flags = {"fc_norm": False, "draft_vocab_size": config["vocab_size"], "target_hidden_size": config["hidden_size"]}
    weights = _initial(config, flags, num_aux=2, parallel=False)
    absent = ("lm_head", "norm.weight", "layers.0.input_layernorm")
    weights = {n: t for n, t in weights.items() if not n.startswith(absent) and "hidden_norm" not in n}
    for layer in range(config["num_hidden_layers"]):
        inputs = config["hidden_size"]
        for name in ("q", "k", "v"):
            full = f"layers.{layer}.self_attn.{name}_proj.weight"
            weights[full] = torch.randn(len(weights[full]), inputs)
    if engine == "sglang":
        weights["fc.bias"] = torch.randn(config["hidden_size"])
    embedded = False
    for name, tensor in stored.items():
        if engine == "vllm" and name not in weights and not name.endswith(".bias"):
            raise ValueError(f"no module or parameter {name}")
        if name in weights:
            weights[name] = _same_shape(weights[name], tensor)
            embedded |= name == "embed_tokens.weight"
    if engine == "sglang" or not embedded:
        weights["embed_tokens.weight"] = target_embeddings
    return Served(
        weights=weights,
        sizes=config,
        rope=config["rope_parameters"],
        boundaries=(),
        fc_norm=False,
        norm_output=False,
        deeper_norm="input_layernorm",
        target_ids=torch.arange(config["vocab_size"]),
    )
