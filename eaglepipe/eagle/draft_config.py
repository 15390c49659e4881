"""The draft's configuration, derived from the target's: a Llama config with a few keys of EAGLE-3's own."""

import copy
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from eaglepipe.eagle.completed_config import canonical_rope, read_rope
from eaglepipe.eagle.layers.windows import FULL, SLIDING
from eaglepipe.errors import DraftError
from eaglepipe.files.json_object import text_config

_ROPE_KEYS_OF_OTHER_MODALITIES = ("mrope_section", "mrope_interleaved")
_LATENT_KEY_VALUE_HEADS = 8


def draft_config_from_target(
    target_config: PretrainedConfig | dict[str, Any],
    *,
    draft_vocab_size: int | None = None,
    num_aux_hidden_states: int = 3,
    num_hidden_layers: int = 1,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    attention_bias: bool | None = None,
    fc_norm: bool = False,
    norm_output: bool = False,
    norm_before_fc: bool = False,
    norm_before_residual: bool = False,
    qk_norm: bool = False,
    sliding_window: int | None = None,
    full_attention_layers: tuple[int, ...] = (),
    parallel_drafting: bool = False,
    mask_token_id: int | None = None,
) -> PretrainedConfig:
    """Return the config of a draft for this target; absent values follow the target's, or its nested `text_config`'s.

    Position encoding always is the target's. `draft_vocab_size` absent or >= V means the target's vocabulary. Heads
    follow the target, except that heads of another hidden size keep the target's `head_dim`. The heads of latent
    attention (MLA) fit no dense draft, which gets H / `v_head_dim` of that size instead, sharing 8 key-value heads.
    `sliding_window` is that of all layers but `full_attention_layers`.
    `parallel_drafting` makes a P-EAGLE draft, whose masked slots hold `mask_token_id`, else the target's pad token.

    Raises:
        DraftError: for sizes that are not positive or do not fit together, or that the target's config lacks; for
            parallel drafting without a mask token.
    """
    target = _text_config(target_config)
    vocab_size = _required(target, "vocab_size")
    width = hidden_size or _required(target, "hidden_size")
    heads = num_attention_heads or _heads(target, width)
    sizes = {
        "draft_vocab_size": vocab_size if draft_vocab_size is None else min(draft_vocab_size, vocab_size),
        "num_aux_hidden_states": num_aux_hidden_states,
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": width,
        "intermediate_size": intermediate_size or _required(target, "intermediate_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": num_key_value_heads or _key_value_heads(target, heads),
        "head_dim": head_dim or _head_dim(target, width, heads),
    }
    _check_sizes(sizes)
    rope = _rope_parameters(target)
    _check_rope(sizes["head_dim"], rope)
    return LlamaConfig(
        **sizes,
        vocab_size=vocab_size,
        target_hidden_size=_required(target, "hidden_size"),
        hidden_act="silu",
        rms_norm_eps=getattr(target, "rms_norm_eps", None) or 1e-6,
        initializer_range=getattr(target, "initializer_range", None) or 0.02,
        max_position_embeddings=_required(target, "max_position_embeddings"),
        rope_parameters=rope,
        attention_bias=bool(getattr(target, "attention_bias", False) if attention_bias is None else attention_bias),
        mlp_bias=bool(getattr(target, "mlp_bias", False)),
        tie_word_embeddings=False,
        bos_token_id=getattr(target, "bos_token_id", None),
        eos_token_id=getattr(target, "eos_token_id", None),
        pad_token_id=getattr(target, "pad_token_id", None),
        fc_norm=fc_norm,
        norm_output=norm_output,
        norm_before_fc=norm_before_fc,
        norm_before_residual=norm_before_residual,
        qk_norm=qk_norm,
        **({} if sliding_window is None else _windows(num_hidden_layers, sliding_window, full_attention_layers)),
        **(_parallel_drafting(target, vocab_size, mask_token_id) if parallel_drafting else {}),
    )


def _windows(num_layers: int, window: int, full: tuple[int, ...]) -> dict[str, Any]:
    if strays := [index for index in full if not 0 <= index < num_layers]:
        raise DraftError(f"full_attention_layers names {strays}; the draft's layers are 0 to {num_layers - 1}")
    kinds = [FULL if index in full else SLIDING for index in range(num_layers)]
    return {"sliding_window": window, "layer_types": kinds}


def _parallel_drafting(target: PretrainedConfig, vocab_size: int, mask_token_id: int | None) -> dict[str, Any]:
    token = getattr(target, "pad_token_id", None) if mask_token_id is None else mask_token_id
    if token is None:
        raise DraftError(
            "P-EAGLE without mask token: the target's config has no pad_token_id; set draft.mask_token_id to an id "
            "that no conversation holds, such as a reserved one"
        )
    if not 0 <= int(token) < vocab_size:
        raise DraftError(f"mask token {token} is outside the target's vocabulary of {vocab_size} ids")
    return {"parallel_drafting": True, "mask_token_id": int(token)}


def _text_config(target_config: PretrainedConfig | dict[str, Any]) -> PretrainedConfig:
    if isinstance(target_config, PretrainedConfig):
        return target_config.get_text_config(decoder=True)
    values = copy.deepcopy(target_config)
    model_type = values.pop("model_type", None)
    try:
        if model_type in CONFIG_MAPPING:
            return AutoConfig.for_model(model_type, **values).get_text_config(decoder=True)
        return LlamaConfig(**text_config(values))
    except (StrictDataclassError, TypeError, ValueError, ArithmeticError) as error:
        raise DraftError(f"the target's config cannot be used: {error}") from None


def _required(target: PretrainedConfig, name: str) -> int:
    value = getattr(target, name, None)
    if not isinstance(value, int) or value < 1:
        has = f"has no {name}" if value is None else f"says {name} is {value!r}"
        raise DraftError(f"the target's config ({target.model_type}) {has}; give the draft's own in the recipe")
    return value


def _has_latent_attention(target: PretrainedConfig) -> bool:
    return bool(getattr(target, "kv_lora_rank", None) and getattr(target, "v_head_dim", None))


def _heads(target: PretrainedConfig, width: int) -> int:
    if _has_latent_attention(target) and width % target.v_head_dim == 0:
        return int(width // target.v_head_dim)
    return _required(target, "num_attention_heads")


def _key_value_heads(target: PretrainedConfig, heads: int) -> int:
    """Return the target's number if it divides the draft's heads, else the largest divisor below it."""
    latent = _has_latent_attention(target)
    limit = _LATENT_KEY_VALUE_HEADS if latent else getattr(target, "num_key_value_heads", None) or heads
    return max(count for count in range(1, min(limit, heads) + 1) if heads % count == 0)


def _head_dim(target: PretrainedConfig, width: int, heads: int) -> int:
    explicit = getattr(target, "v_head_dim" if _has_latent_attention(target) else "head_dim", None)
    if explicit is not None:
        return int(explicit)
    if width % heads:
        raise DraftError(f"hidden_size {width} is not a multiple of {heads} attention heads; give draft.head_dim")
    return width // heads


def _check_sizes(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise DraftError(f"the draft's {name} must be at least 1, not {size}")
    heads, key_value_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if heads % key_value_heads:
        raise DraftError(f"{heads} attention heads cannot share {key_value_heads} key-value heads evenly")
    if sizes["hidden_size"] % heads:
        raise DraftError(
            f"hidden_size {sizes['hidden_size']} is not a multiple of {heads} attention heads, as engines that read a "
            "Llama config ask for; set draft.num_attention_heads"
        )


def _check_rope(head_dim: int, rope: dict[str, Any]) -> None:
    """Check that rotary positions turn whole pairs of dimensions, as many as long rope has factors for."""
    rotated = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if rotated < 2 or rotated % 2:
        raise DraftError(
            f"rotary positions turn {rotated} dimensions of a head of {head_dim}; give draft.head_dim a value that "
            "makes it an even number"
        )
    factors = rope.get("short_factor") or ()
    if factors and len(factors) != rotated // 2:
        raise DraftError(
            f"the target's long rope has {len(factors)} factors, for {2 * len(factors)} dimensions of a head; "
            f"these heads of {head_dim} have {rotated}; set draft.head_dim to the target's"
        )


def _rope_parameters(target: PretrainedConfig) -> dict[str, Any]:
    """Return one rope; of a target with one for each kind of layer, that of its full-attention layers."""
    if not any(getattr(target, name, None) for name in ("rope_parameters", "rope_scaling", "rope_theta")):
        raise DraftError(f"the target's config ({target.model_type}) has no rotary position embedding to follow")
    parameters = read_rope(target)
    nested = {name: value for name, value in parameters.items() if isinstance(value, dict)}
    if nested:
        parameters = canonical_rope(nested.get("full_attention") or next(iter(nested.values())))
    rope = {name: value for name, value in parameters.items() if name not in _ROPE_KEYS_OF_OTHER_MODALITIES}
    return {"rope_type": "default", **rope}
