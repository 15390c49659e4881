"""The config of a draft that guesses blocks: a Qwen3 config with a few keys of its own."""

from typing import Any

from transformers import PretrainedConfig, Qwen3Config

from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.layers.windows import FULL, SLIDING
from eaglepipe.errors import DraftError

_QWEN3_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "rope_parameters", "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip


def dflash_config_from_target(
    target_config: PretrainedConfig | dict[str, Any],
    *,
    block_size: int,
    mask_token_id: int | None = None,
    sample_from_anchor: bool = False,
    sliding_window: int | None = None,
    full_attention_layers: tuple[int, ...] = (),
    sliding_window_non_causal: bool = False,
    **shape: Any,
) -> PretrainedConfig:
    """Return the config of a draft for this target; absent values of `shape` follow the target's.

    Args:
        block_size: slots of a block, the anchor's included.
        mask_token_id: id in the slots to guess; None: the target's pad token.
        sample_from_anchor: whether the anchor's slot guesses too, as in DSpark.
        sliding_window, full_attention_layers: as `draft_config_from_target` takes them.
        sliding_window_non_causal: whether layers with a window read their whole block, as the others do.
        shape: sizes, as `draft_config_from_target` takes them.

    Raises:
        DraftError: for sizes that do not fit together, a block without a slot to guess, no mask token, or one outside
            the vocabulary.
    """
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 2:
        raise DraftError(f"block_size must be an int of at least 2, the anchor and a guess, not {block_size!r}")
    base = draft_config_from_target(target_config, full_attention_layers=full_attention_layers, **shape)
    token = base.pad_token_id if mask_token_id is None else mask_token_id
    if token is None:
        raise DraftError(
            "a block draft without mask token: the target's config has no pad_token_id; set draft.mask_token_id to an "
            "id that no conversation holds, such as a reserved one"
        )
    if not 0 <= int(token) < base.vocab_size:
        raise DraftError(f"mask token {token} is outside the target's vocabulary of {base.vocab_size} ids")
    slides = [sliding_window is not None and i not in full_attention_layers for i in range(base.num_hidden_layers)]
    return Qwen3Config(
        **{name: getattr(base, name) for name in _QWEN3_KEYS},
        tie_word_embeddings=False,
        use_sliding_window=any(slides),
        sliding_window=sliding_window,
        layer_types=[SLIDING if slide else FULL for slide in slides],
        sliding_window_non_causal=sliding_window_non_causal,
        draft_vocab_size=base.draft_vocab_size,
        target_hidden_size=base.target_hidden_size,
        num_aux_hidden_states=base.num_aux_hidden_states,
        block_size=block_size,
        mask_token_id=int(token),
        sample_from_anchor=sample_from_anchor,
    )


def block_windows(config: Any) -> tuple[int | None, ...]:
    """Return the window of each layer of a block draft, None for full attention."""
    kinds = getattr(config, "layer_types", None) or [FULL] * config.num_hidden_layers
    return tuple(config.sliding_window if kind == SLIDING else None for kind in kinds)
