"""The types of the fields that are read of a draft's config.json, whoever wrote it; null is an absent field.

Aux layer ids are left out: `export --check` reports them, and other readers take malformed ones for absent.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_SIZE, _MAX_COUNT, _MAX_NESTING = 2**31 - 1, 1024, 8


@dataclass(frozen=True, kw_only=True)
class _Kind:
    label: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_plain(value: Any, nesting: int = 0) -> bool:
    """Return whether a value can be written again: nothing infinite, half a character, or nested deeply."""
    if isinstance(value, dict | list) and nesting < _MAX_NESTING:
        items = [*value, *value.values()] if isinstance(value, dict) else value
        return all(_is_plain(item, nesting + 1) for item in items)
    return value is None or isinstance(value, bool) or _is_text(value) or _is_finite(value)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -1e308 < value < 1e308


def _all(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


_SIZE = _Kind(label=f"a whole number from 1 to {_MAX_SIZE:,}", fits=lambda value: _is_whole(value, 1, _MAX_SIZE))
_COUNT = _Kind(label=f"a whole number from 1 to {_MAX_COUNT:,}", fits=lambda value: _is_whole(value, 1, _MAX_COUNT))
_TOKEN = _Kind(label="a token id", fits=lambda value: _is_whole(value, -1, _MAX_SIZE))
_TOKENS = _Kind(label="a token id, or a list of them", fits=lambda v: _TOKEN.fits(v) or _all(v, _TOKEN.fits))
_POSITIVE = _Kind(label="a positive number", fits=lambda value: _is_finite(value) and value > 0)
_WHOLE = _Kind(label="a whole number", fits=lambda value: _is_whole(value, 0, _MAX_SIZE))
_FLAG = _Kind(label="true or false", fits=lambda value: isinstance(value, bool))
_TEXT = _Kind(label="a text", fits=_is_text)
_TEXTS = _Kind(label="a list of texts", fits=lambda value: _all(value, _is_text))
_OBJECT = _Kind(label="an object", fits=lambda value: isinstance(value, dict))
_OBJECTS = _Kind(label="a list of objects", fits=lambda value: _all(value, _OBJECT.fits))
_PLAIN = _Kind(label="a finite value", fits=_is_plain)

_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "draft_vocab_size", "target_hidden_size", "max_position_embeddings",
)  # fmt: skip
_FLAGS = (
    "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "attention_bias", "mlp_bias", "bias",
    "tie_word_embeddings", "use_sliding_window", "embed_requires_grad", "use_aux_hidden_state",
    "qk_norm", "parallel_drafting", "use_aux_norm", "sample_from_anchor", "sliding_window_non_causal", "is_causal",
    "causal", "use_swa", "enable_confidence_head", "confidence_head_with_markov",
)  # fmt: skip
_COUNTS = (
    "num_hidden_layers", "num_aux_hidden_states", "target_num_hidden_layers", "num_target_layers", "block_size",
)  # fmt: skip
_FIELDS: Mapping[str, _Kind] = {
    **dict.fromkeys(_SIZES, _SIZE),
    **dict.fromkeys(_COUNTS, _COUNT),
    **dict.fromkeys(_FLAGS, _FLAG),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor"), _POSITIVE),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _TOKENS),
    **dict.fromkeys(("mask_token_id", "pard_token", "ptd_token_id"), _TOKEN),
    **dict.fromkeys(("model_type", "hidden_act", "torch_dtype", "dtype", "speculators_model_type"), _TEXT),
    "markov_head_type": _TEXT,
    **dict.fromkeys(("markov_rank", "swa_window_size"), _WHOLE),
    **dict.fromkeys(("architectures", "layer_types"), _TEXTS),
    "sliding_window": _WHOLE,
}
_ROPE: Mapping[str, _Kind] = {
    **dict.fromkeys(("rope_type", "type"), _TEXT),
    **dict.fromkeys(("rope_theta", "partial_rotary_factor"), _POSITIVE),
}
_NESTED: Mapping[str, Mapping[str, _Kind]] = {
    "rope_scaling": _ROPE,
    "rope_parameters": _ROPE,
    "eagle_config": _FIELDS,
    "dflash_config": _FIELDS,
    "transformer_layer_config": _FIELDS,
    "speculators_config": {"algorithm": _TEXT, "default_proposal_method": _TEXT, "proposal_methods": _OBJECTS},
    "verifier": {"name_or_path": _TEXT, "architectures": _TEXTS},
}


def config_faults(config: Mapping[str, Any], fields: Mapping[str, Any] = _FIELDS, prefix: str = "") -> Iterator[str]:
    """Yield a text for each field of another type than readers take it for, those of nested objects included."""
    for name, value in config.items():
        kind = _OBJECT if name in _NESTED else fields.get(name, _PLAIN if fields is _ROPE else None)
        if value is None or kind is None:
            continue
        if not kind.fits(value):
            yield f"{prefix}{name} is {reprlib.repr(value)}, not {kind.label}"
        elif name in _NESTED and prefix.count(".") < _MAX_NESTING:
            yield from config_faults(value, _NESTED[name], f"{prefix}{name}.")
