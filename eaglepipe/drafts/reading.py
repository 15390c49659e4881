"""What a draft's config.json says, in the native format (one level) or in that of speculators (a nested one)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from eaglepipe.drafts.shape import DraftShape, Family, count_layers
from eaglepipe.errors import DraftError

AUX_IDS = "eagle_aux_hidden_state_layer_ids"
MASK_TOKEN_NAMES = ("mask_token_id", "pard_token", "ptd_token_id")
NORM_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")

Ids = tuple[int, ...]
Convention = Literal["boundaries", "outputs"]


@dataclass(frozen=True, kw_only=True)
class AuxSpelling:
    """The aux layers as a config spells them; None where it does not."""

    top: Ids | None  # read by vLLM and speculators, as boundaries
    eagle: Ids | None  # eagle_config's, read by SGLang as layer outputs, by vLLM (V1 runner) as boundaries
    layer_ids: Ids | None  # eagle_config's, read by vLLM's V2 runner


def is_speculators(config: Mapping[str, Any]) -> bool:
    """Whether readers take the config for one of the speculators format."""
    return "speculators_config" in config or "speculators_model_type" in config


def layer_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The level that holds the sizes of the transformer."""
    nested = config.get("transformer_layer_config") if is_speculators(config) else config
    return nested if isinstance(nested, Mapping) else {}


def eagle_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("eagle_config")
    return nested if isinstance(nested, Mapping) else {}


def flag(config: Mapping[str, Any], name: str) -> bool:
    """A norm flag; `eagle_config` wins for norm_before_fc, and speculators takes norm_before_residual for true."""
    if name == "norm_before_fc" and name in eagle_config(config):
        return bool(eagle_config(config)[name])
    default = name == "norm_before_residual" and config.get("speculators_model_type") == "eagle3"
    value = config.get(name)
    return default if value is None else bool(value)


def read_aux(config: Mapping[str, Any]) -> AuxSpelling:
    nested = eagle_config(config)
    return AuxSpelling(
        top=_ids(config.get(AUX_IDS)), eagle=_ids(nested.get(AUX_IDS)), layer_ids=_ids(nested.get("layer_ids"))
    )


def _ids(value: Any) -> Ids | None:
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return tuple(value)
    return None


def read_num_aux(config: Mapping[str, Any]) -> int:
    """Aux layers that readers expect: as declared, else as many as ids, else 3."""
    declared = config.get("num_aux_hidden_states", layer_config(config).get("num_aux_hidden_states"))
    spelling = read_aux(config)
    ids = spelling.top if is_speculators(config) else spelling.eagle
    if isinstance(declared, int):
        return declared
    return len(ids) if ids else 3


def read_rope(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rotary parameters, theta among them, of either spelling; None where there is no theta."""
    inner = layer_config(config)
    modern = inner.get("rope_parameters")
    if isinstance(modern, Mapping) and "rope_theta" in modern:
        return {"rope_type": "default", **modern}
    if inner.get("rope_theta") is None:
        return None
    scaling = inner.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    rest = {name: value for name, value in scaling.items() if name != "type"}
    if "partial_rotary_factor" in inner:
        rest["partial_rotary_factor"] = inner["partial_rotary_factor"]
    return {**rest, "rope_type": kind, "rope_theta": inner["rope_theta"]}


def read_mask_token(config: Mapping[str, Any]) -> int | None:
    found = (config.get(name) for name in MASK_TOKEN_NAMES)
    return next((value for value in found if isinstance(value, int)), None)


def read_family(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Family:
    """By what is stored (canonical names) first: engines cannot tell EAGLE-1 from EAGLE-3 by the config alone."""
    if "mask_hidden" in tensors or read_mask_token(config) is not None:
        return "peagle"
    if config.get("speculators_model_type") == "peagle":
        return "peagle"
    query = tensors.get("layers.0.self_attn.q_proj.weight")
    hidden = _size(layer_config(config), "hidden_size", 0)
    if query is not None and query.dim() == 2 and "layers.0.hidden_norm.weight" not in tensors:
        return "eagle1" if query.shape[1] == hidden else "eagle3"
    return "eagle1" if config.get("architectures") == ["LlamaForCausalLMEagle"] else "eagle3"


def read_shape(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> DraftShape:
    """The draft that a config describes; `tensors` by canonical name. Its depth is what is stored, if anything is.

    Raises:
        DraftError: the config lacks a size.
    """
    inner = layer_config(config)
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    absent = [name for name in names if not _is_size(inner.get(name))]
    if absent:
        raise DraftError(f"the config gives no {', '.join(absent)}")
    hidden, heads = inner["hidden_size"], inner["num_attention_heads"]
    return DraftShape(
        family=read_family(config, tensors),
        vocab_size=inner["vocab_size"],
        draft_vocab_size=_size(config, "draft_vocab_size", inner["vocab_size"]),
        hidden_size=hidden,
        target_hidden_size=_size(config, "target_hidden_size", hidden),
        intermediate_size=inner["intermediate_size"],
        num_layers=count_layers(tensors) or _size(inner, "num_hidden_layers", 1),
        num_heads=heads,
        num_key_value_heads=_size(inner, "num_key_value_heads", heads),
        head_dim=_size(inner, "head_dim", hidden // heads),
        num_aux=read_num_aux(config),
        **{name: flag(config, name) for name in NORM_FLAGS},
        attention_bias=bool(inner.get("attention_bias")),
        mlp_bias=bool(inner.get("mlp_bias")),
    )


def _size(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name)
    return value if _is_size(value) else default  # type: ignore[return-value]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
