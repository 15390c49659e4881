"""Reads the config.json of a draft, in the native format (one level) or in that of speculators (a nested one)."""

from collections.abc import Mapping
from typing import Any

import torch

from eaglepipe.drafts.block_config import (
    declared_block_family,
    dflash_config,
    read_block_mask,
    read_block_shape,
    read_boundaries,
)
from eaglepipe.drafts.shape import DraftShape, count_layers
from eaglepipe.errors import DraftError
from eaglepipe.families import EAGLE1, EAGLE3, FAMILIES, PEAGLE, Family

AUX_IDS = "eagle_aux_hidden_state_layer_ids"
MASK_TOKEN_NAMES = ("mask_token_id", "pard_token", "ptd_token_id")
SLIDING = "sliding_attention"
QWEN3 = "qwen3"
"""`model_type` of drafts that norm the heads of queries and keys."""
QWEN3_HEAD_DIM = 128
"""The head_dim of a Qwen3 config that names none."""
QK_NORM_ARCHITECTURES = frozenset({"Eagle3Qwen3ForCausalLM", "PeagleQwen3ForCausalLM", "Qwen3ForCausalLM"})
NORM_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
SPECULATORS_TYPES = {family.speculators_type: family for family in FAMILIES.values() if family.speculators_type}

Ids = tuple[int, ...]


def is_speculators(config: Mapping[str, Any]) -> bool:
    """Return whether readers take the config for one of the speculators format."""
    return "speculators_config" in config or "speculators_model_type" in config


def layer_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the level that holds the sizes of the transformer."""
    nested = config.get("transformer_layer_config") if is_speculators(config) else config
    return nested if isinstance(nested, Mapping) else {}


def eagle_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the nested `eagle_config`, empty if there is none."""
    nested = config.get("eagle_config")
    return nested if isinstance(nested, Mapping) else {}


def read_norm_flag(config: Mapping[str, Any], name: str) -> bool:
    """Read a norm flag: `eagle_config` wins for norm_before_fc, speculators takes norm_before_residual for true."""
    if name == "norm_before_fc" and name in eagle_config(config):
        return bool(eagle_config(config)[name])
    if name == "fc_norm" and config.get("use_aux_norm"):  # SGLang's older name
        return True
    if config.get(name) is not None:
        return bool(config[name])
    declared = _speculators_family(config)
    return name == "norm_before_residual" and declared is not None and not declared.is_parallel


def read_aux(config: Mapping[str, Any]) -> tuple[Ids | None, Ids | None]:
    """Read the aux layer ids of the top level, which are boundaries, and those of `eagle_config`, which may not be."""
    return _ids(config.get(AUX_IDS)), _ids(eagle_config(config).get(AUX_IDS))


def _ids(value: Any) -> Ids | None:
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return tuple(value)
    return None


def read_num_aux(config: Mapping[str, Any]) -> int:
    """Return the number of aux layers that readers expect: as declared, else as many as ids, else 3."""
    declared = config.get("num_aux_hidden_states", layer_config(config).get("num_aux_hidden_states"))
    if isinstance(declared, int):
        return declared
    top, nested = read_aux(config)
    return len((top if is_speculators(config) else nested) or (0, 0, 0))


def read_windows(config: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Read the window of each layer, None for full attention; () if no layer has one.

    `layer_types` decides, and not a `sliding_window` alone; in a Qwen3 config, `use_sliding_window` has to be set too.
    """
    inner, nested = layer_config(config), dflash_config(config)
    window, kinds = inner.get("sliding_window"), inner.get("layer_types") or ()
    if nested.get("swa_window_size") or nested.get("use_swa"):  # both of block drafts
        window = nested.get("swa_window_size") or window
        kinds = kinds if SLIDING in kinds or not nested.get("use_swa") else (SLIDING,) * num_layers
    elif inner.get("model_type") == QWEN3 and inner.get("use_sliding_window") is not True:
        return ()
    if not window:
        return ()
    slides = [index < len(kinds) and kinds[index] == SLIDING for index in range(num_layers)]
    return tuple(int(window) if slide else None for slide in slides) if any(slides) else ()


def read_qk_norm(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a draft norms the heads of queries and keys: it has the tensors, or a class of engines that do."""
    if "layers.0.self_attn.q_norm.weight" in tensors or config.get("qk_norm"):
        return True
    if is_speculators(config):
        return layer_config(config).get("model_type") == QWEN3
    return not QK_NORM_ARCHITECTURES.isdisjoint(config.get("architectures") or ())


def read_rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the rotary parameters, theta among them, in either spelling; None if there is no theta."""
    inner = layer_config(config)
    modern = inner.get("rope_parameters")
    if isinstance(modern, Mapping) and "rope_theta" in modern:
        return {"rope_type": "default", **modern}
    if inner.get("rope_theta") is None:
        return None
    scaling = inner.get("rope_scaling") or {}
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    rest = {name: value for name, value in scaling.items() if name != "type"}
    if "partial_rotary_factor" in inner:
        rest["partial_rotary_factor"] = inner["partial_rotary_factor"]
    return {**rest, "rope_type": rope_type, "rope_theta": inner["rope_theta"]}


def read_mask_token(config: Mapping[str, Any]) -> int | None:
    """Read the token id of masked slots under any of its names."""
    named = (config[name] for name in MASK_TOKEN_NAMES if isinstance(config.get(name), int))
    return next(named, None) if (token := read_block_mask(config)) is None else token


def read_family(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Family:
    """Return the family of a draft: EAGLE-1 stands for EAGLE-2 as well, which has the same weights.

    Tensors (by canonical name) decide before the config, which does not always tell EAGLE-1 from EAGLE-3, unless it
    names a block draft.

    Raises:
        DraftError: it is a kind of block draft that is not known here.
    """
    if (block := declared_block_family(config)) is not None:
        return block
    if marked := [family for family in FAMILIES.values() if family.own_tensor in tensors]:
        return marked[-1]  # a family that is built on another has its tensors too
    declared = _speculators_family(config)
    has_mask_token = declared is not None and declared.has_mask_token
    if has_mask_token or read_mask_token(config) is not None:
        return PEAGLE
    unambiguous = EAGLE1.engine_architectures["sglang"]
    reads_features = config.get("architectures") == [unambiguous]
    query = tensors.get("layers.0.self_attn.q_proj.weight")
    if query is not None and query.dim() == 2 and "layers.0.hidden_norm.weight" not in tensors:
        reads_features = query.shape[1] == _size(layer_config(config), "hidden_size", 0)
    return EAGLE1 if reads_features else EAGLE3


def _speculators_family(config: Mapping[str, Any]) -> Family | None:
    name = config.get("speculators_model_type")
    return SPECULATORS_TYPES.get(name) if isinstance(name, str) else None


def read_shape(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> DraftShape:
    """Read the shape of a draft; layers among its tensors, by canonical name, overrule the depth in its config.

    Raises:
        DraftError: the config lacks a size.
    """
    inner = layer_config(config)
    required = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if absent := [name for name in required if not _is_size(inner.get(name))]:
        raise DraftError(f"the config has no {', '.join(absent)}")
    hidden, heads = inner["hidden_size"], inner["num_attention_heads"]
    draft_vocab_size = _size(config, "draft_vocab_size", inner["vocab_size"])
    family, num_layers = read_family(config, tensors), count_layers(tensors) or _size(inner, "num_hidden_layers", 1)
    windows = read_windows(config, num_layers)
    block = read_block_shape(config, tensors, family, windows) if family.drafts_blocks else None
    if draft_vocab_size > inner["vocab_size"]:
        raise DraftError(f"the config's draft_vocab_size, {draft_vocab_size}, exceeds vocab_size {inner['vocab_size']}")
    return DraftShape(
        family=family,
        vocab_size=inner["vocab_size"],
        draft_vocab_size=draft_vocab_size,
        hidden_size=hidden,
        target_hidden_size=_size(config, "target_hidden_size", hidden),
        intermediate_size=inner["intermediate_size"],
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=_size(inner, "num_key_value_heads", heads),
        head_dim=_size(inner, "head_dim", hidden // heads if block is None else QWEN3_HEAD_DIM),
        num_aux=read_num_aux(config) if block is None else _num_block_aux(config, tensors, hidden),
        **{name: block is None and read_norm_flag(config, name) for name in NORM_FLAGS},
        attention_bias=bool(inner.get("attention_bias")),
        mlp_bias=bool(inner.get("mlp_bias")),
        hidden_act=inner.get("hidden_act") or "silu",
        qk_norm=block is not None or read_qk_norm(config, tensors),
        input_norm=not family.reads_aux and "layers.0.input_layernorm.weight" in tensors,
        final_norm=not family.reads_aux and "norm.weight" in tensors,
        windows=windows,
        block=block,
    )


def _num_block_aux(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], hidden: int) -> int:
    """Return the number of aux layers of a block draft: as many as ids or, if it names none, as `fc` reads."""
    if ids := read_boundaries(config):
        return len(ids)
    fc = tensors.get("fc.weight")
    return max(fc.shape[-1] // _size(config, "target_hidden_size", hidden), 1) if fc is not None else 1


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return value if _is_size(value) else default  # type: ignore[return-value]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
