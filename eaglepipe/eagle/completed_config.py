"""The configs that drafts are built from: a draft's own, or a target's as it is, whatever its family and its spelling.

Keys that are absent get the meaning that they have in a Llama family; a config with all of them is used as it is.
"""

import copy
from collections.abc import Mapping
from typing import Any

from eaglepipe.errors import DraftError

DEFAULT_THETA = 10000.0
_ROPE_TYPE_ALIASES = {"su": "longrope", "mrope": "default"}
_TYPES_FROM_AN_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")
_KEY_OF_DERIVED_CONFIGS = "norm_before_fc"
"""Present in every config that `draft_config_from_target` made, in no target's."""


def completed_config(config: Any) -> Any:
    """Return a config with every key that a draft's layers read: itself, or a copy if some are absent.

    No biases unless set, heads of H / heads, and one `rope_parameters` made of `rope_theta` and `rope_scaling` where
    they stand beside it. Of a config with images, its text config.

    Raises:
        DraftError: the config has one rope for each layer type.
    """
    if not hasattr(config, "hidden_size") and hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    completed = _with_defaults(
        config,
        num_key_value_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        attention_bias=False,
        mlp_bias=False,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        max_position_embeddings=2048,
    )
    return _with_values(completed, rope_parameters=single_rope(completed))


def completed_eagle3_config(config: Any) -> Any:
    """Return `completed_config` with EAGLE-3's keys: the target's width and vocabulary, three aux layers, no norms.

    A target's depth is not the draft's: the draft has one layer, unless `draft_num_hidden_layers` or parallel drafting
    asks for more, or the config is one of `draft_config_from_target`.

    Raises:
        DraftError: as `completed_config`.
    """
    completed = completed_config(config)
    completed = _with_defaults(
        completed,
        target_hidden_size=completed.hidden_size,
        num_aux_hidden_states=3,
        draft_vocab_size=completed.vocab_size,
        fc_norm=False,
        norm_output=False,
    )
    completed = _with_values(completed, tie_word_embeddings=False)  # the draft's lm_head is its own
    if is_derived(config):
        return completed
    is_parallel = bool(getattr(completed, "parallel_drafting", False))
    return _with_depth(completed, completed.num_hidden_layers if is_parallel else 1)


def completed_eagle1_config(config: Any) -> Any:
    """Return `completed_config` with as many layers as `draft_num_hidden_layers` asks for, else `num_hidden_layers`.

    Raises:
        DraftError: as `completed_config`.
    """
    completed = completed_config(config)
    return _with_depth(completed, completed.num_hidden_layers)


def is_derived(config: Any) -> bool:
    """Return whether a config is a draft's own, made by `draft_config_from_target`, and not a target's as it is."""
    return hasattr(config, _KEY_OF_DERIVED_CONFIGS)


def has_option(config: Any, name: str) -> bool:
    """Return whether a draft's own config sets an option; a target's key of that name is none of the draft's."""
    return is_derived(config) and bool(getattr(config, name, False))


def single_rope(config: Any) -> dict[str, Any]:
    """Return the rope of a config, as `rope_parameters` spells it, for all its layers.

    Raises:
        DraftError: the config has one rope for each layer type.
    """
    rope = read_rope(config)
    by_layer = sorted(name for name, value in rope.items() if isinstance(value, Mapping))
    local = getattr(config, "rope_local_base_freq", None)
    if by_layer or local is not None:
        kinds = ", ".join(by_layer) or f"rope_local_base_freq is {local}"
        raise DraftError(
            f"the config has one rope for each layer type ({kinds}), and a draft has one for all its layers; make its "
            "config with draft_config_from_target, which takes that of the full-attention layers"
        )
    return rope


def read_rope(config: Any) -> dict[str, Any]:
    """Return the rope of a config in the spelling of `rope_parameters`, one for each layer type if it is nested.

    `rope_scaling` that was set beside `rope_parameters` overrides it; `rope_theta`, `partial_rotary_factor` and
    `original_max_position_embeddings` beside it fill it up.
    """
    parameters = canonical_rope(getattr(config, "rope_parameters", None) or {})
    rope = {**parameters, **canonical_rope(vars(config).get("rope_scaling") or {})}
    if any(isinstance(value, Mapping) for value in rope.values()):
        return rope
    rope.setdefault("rope_type", "default")
    beside = {"rope_theta": DEFAULT_THETA, "partial_rotary_factor": None}
    if rope["rope_type"] in _TYPES_FROM_AN_ORIGINAL_LENGTH:
        beside["original_max_position_embeddings"] = getattr(config, "max_position_embeddings", None)
    for name, default in beside.items():
        value = getattr(config, name, None)
        value = default if value is None else value
        if rope.get(name) is None and value is not None:
            rope[name] = value
    return rope


def canonical_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with `rope_type` for what older configs call `type`."""
    canonical = {name: copy.deepcopy(value) for name, value in rope.items() if name != "type"}
    kind = canonical.get("rope_type") or rope.get("type")
    if kind is not None:
        canonical["rope_type"] = _ROPE_TYPE_ALIASES.get(kind, kind)
    return canonical


def _with_depth(config: Any, depth: int) -> Any:
    depth = getattr(config, "draft_num_hidden_layers", None) or depth
    if config.num_hidden_layers == depth:
        return config
    kinds = {} if getattr(config, "layer_types", None) is None else {"layer_types": ["full_attention"] * depth}
    return _with_values(config, num_hidden_layers=depth, **kinds)


def _with_defaults(config: Any, **defaults: Any) -> Any:
    absent = {name: value for name, value in defaults.items() if getattr(config, name, None) is None}
    return _with_values(config, **absent)


def _with_values(config: Any, **values: Any) -> Any:
    """Return a config that has these values: itself, or a copy."""
    changed = {name: value for name, value in values.items() if getattr(config, name, None) != value}
    if not changed:
        return config
    completed = copy.deepcopy(config)
    for name, value in changed.items():
        setattr(completed, name, value)
    return completed
