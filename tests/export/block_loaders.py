"""What engines make of a block draft's folder: names and fields that they read, written from the loaders' rules.

Like the real loaders it never complains of a tensor that is missing: that one stays None.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A block draft as an engine holds it."""

    weights: Weights  # of the draft's modules, by name
    boundaries: tuple[int, ...]
    mask_token: int
    layers: tuple[tuple[int | None, bool], ...]  # window and causality inside a block
    head: torch.Tensor | None  # None: the target's
    target_ids: torch.Tensor  # of the draft ids
    rope: dict[str, Any]
    guesses_at_anchor: bool


def load_blocks(engine: str, folder: Path) -> Loaded:
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    return {"vllm": _vllm, "speculators": _speculators, "sglang": _sglang, "hf": _portable}[engine](config, stored)


def _vllm(config: dict[str, Any], stored: Weights) -> Loaded:
    assert config["architectures"] in (["DFlashDraftModel"], ["Qwen3DSparkModel"]) and config["model_type"] == "qwen3"
    is_dspark = config["architectures"] == ["Qwen3DSparkModel"]
    nested = config.get("dflash_config", {})
    ids = config.get("eagle_aux_hidden_state_layer_ids") or [i + 1 for i in nested.get("target_layer_ids", [])]
    ids = ids or [i + 1 for i in config["target_layer_ids"]]
    names = _names(config, len(ids), has_heads=is_dspark)
    vocab, rows = config["vocab_size"], config.get("draft_vocab_size") or config["vocab_size"]
    assert not is_dspark or config["markov_head_type"] == "vanilla"
    weights, head, offsets = {}, None, torch.zeros(rows, dtype=torch.int64)
    for name, tensor in stored.items():
        assert "mask_hidden" not in name
        if "t2d" in name:
            continue
        if "d2t" in name:
            assert rows != vocab, "no module or parameter draft_id_to_target_id"
            offsets = tensor
        elif "lm_head" in name:
            head = tensor
        else:
            assert names[name] == tuple(tensor.shape), name
            weights[name] = tensor
    assert not is_dspark or rows == vocab or ("d2t" in stored and head is not None)
    return Loaded(
        weights=weights,
        boundaries=tuple(ids),
        mask_token=nested.get("mask_token_id", config.get("mask_token_id")),
        layers=_layers(config, nested.get("causal")),
        head=head,
        target_ids=torch.arange(rows) + offsets,
        rope=config["rope_parameters"],
        guesses_at_anchor=is_dspark and config["sample_from_anchor"],
    )


def _layers(config: dict[str, Any], causal: bool | None) -> tuple[tuple[int | None, bool], ...]:
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    window = config["sliding_window"] if config.get("use_sliding_window") else None
    assert window or "sliding_attention" not in kinds
    slides = [kind == "sliding_attention" for kind in kinds]
    return tuple((window if slide else None, slide if causal is None else causal) for slide in slides)


def _sglang(config: dict[str, Any], stored: Weights) -> Loaded:
    assert config["model_type"] == "qwen3"
    is_dspark = config["architectures"] == ["Qwen3DSparkModel"]
    nested = config.get("dflash_config", {})
    outputs = nested.get("target_layer_ids", config.get("target_layer_ids"))
    depth = config.get("num_target_layers", config["num_hidden_layers"])
    assert all(0 <= output < depth - 1 for output in outputs), "nothing is captured behind the last layer"
    names = _names(config, len(outputs), has_heads=is_dspark)
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    return Loaded(
        weights={name: tensor for name, tensor in stored.items() if names.get(name) == tuple(tensor.shape)},
        boundaries=tuple(output + 1 for output in outputs),
        mask_token=nested.get("mask_token_id", config.get("mask_token_id")),
        layers=_layers(config, None),
        head=None,
        target_ids=torch.arange(config["vocab_size"]),
        rope={**scaling, "rope_theta": config["rope_theta"]},
        guesses_at_anchor=is_dspark,
    )


def _portable(config: dict[str, Any], stored: Weights) -> Loaded:
    """Both engines have to read the same."""
    first, second = _vllm(config, stored), _sglang(config, stored)
    assert first.boundaries == second.boundaries and first.layers == second.layers
    assert first.mask_token == second.mask_token and first.rope == second.rope
    assert first.weights.keys() == second.weights.keys() and first.head is None
    return first


def _speculators(config: dict[str, Any], stored: Weights) -> Loaded:
    assert "model_type" not in config
    kind, layer = config["speculators_model_type"], config["transformer_layer_config"]
    assert kind == config["speculators_config"]["algorithm"]
    names = _names({**config, **layer}, len(config["aux_hidden_state_layer_ids"]), has_heads=kind == "dspark")
    vocab, rows = layer["vocab_size"], config["draft_vocab_size"]
    ids = torch.arange(rows)
    if rows != vocab:
        assert stored["t2d"].nonzero()[:, 0].tolist() == (ids + stored["d2t"]).tolist()
        ids = ids + stored["d2t"]
    layers = _layers(layer, None)
    return Loaded(
        weights={name: tensor for name, tensor in stored.items() if names.get(name) == tuple(tensor.shape)},
        boundaries=tuple(config["aux_hidden_state_layer_ids"]),
        mask_token=config["mask_token_id"],
        layers=tuple((w, w is not None and not config["sliding_window_non_causal"]) for w, _ in layers),
        head=stored["lm_head.weight"] if rows != vocab else None,
        target_ids=ids,
        rope=layer["rope_parameters"],
        guesses_at_anchor=config["sample_from_anchor"],
    )


def _names(config: dict[str, Any], num_aux: int, *, has_heads: bool) -> dict[str, tuple[int, ...]]:
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    names: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, num_aux * hidden), "hidden_norm.weight": (hidden,), "norm.weight": (hidden,),
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key, hidden), "self_attn.v_proj": (key, hidden), "self_attn.o_proj": (hidden, query),
            "self_attn.q_norm": (dim,), "self_attn.k_norm": (dim,), "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        names |= {f"layers.{layer}.{part}.weight": size for part, size in parts.items()}
    if has_heads:
        rank, vocab = config["markov_rank"], config["vocab_size"]
        names["markov_head.markov_w1.weight"] = (vocab, rank)
        names["markov_head.markov_w2.weight"] = (config.get("draft_vocab_size") or vocab, rank)
        if config["markov_head_type"] == "gated":
            names["markov_head.gate_proj.weight"], names["markov_head.gate_proj.bias"] = (rank, hidden + rank), (rank,)
        if config["markov_head_type"] == "rnn":
            names["markov_head.joint_proj.weight"] = (3 * rank, 2 * rank + hidden)
            names["markov_head.joint_proj.bias"] = (3 * rank,)
    if has_heads and config["enable_confidence_head"]:
        width = hidden + (config["markov_rank"] if config["confidence_head_with_markov"] else 0)
        names["confidence_head.proj.weight"], names["confidence_head.proj.bias"] = (1, width), (1,)
    return names
