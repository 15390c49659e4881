"""Builds the config.json of an exported draft: the fields that engines read, and no others."""

from typing import Any

from eaglepipe.drafts.aux_ids import sglang_ids
from eaglepipe.drafts.reading import AUX_IDS, NORM_FLAGS, QWEN3
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.export.block_engines import native_fields, speculators_fields
from eaglepipe.export.layouts import Layout
from eaglepipe.export.trained import TrainedDraft

SPECULATORS_VERSION = "0.9.0"  # whose layout this is
_SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
    "vocab_size",
)  # fmt: skip
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def engine_config(
    draft: TrainedDraft, layout: Layout, *, dtype: str, target_name: str, draft_tokens: int
) -> dict[str, Any]:
    """Return the config in the engine's format; speculators proposes `draft_tokens` tokens at once."""
    dtypes = {"torch_dtype": dtype, "dtype": dtype}
    layer = _layer_fields(draft)
    config: dict[str, Any] = {"architectures": [_architecture(draft, layout)]}
    if (block := draft.block_draft) is not None:
        plain = {"tie_word_embeddings": False, **dtypes}
        if not layout.writes_speculators_format:
            return {**config, **layer, **plain, **native_fields(block)}
        config |= _speculators_block(draft, target_name, draft_tokens)
        return {**config, "transformer_layer_config": {**layer, **dtypes}, **plain, **speculators_fields(block)}
    if layout.writes_speculators_format:
        config |= _speculators_block(draft, target_name, draft_tokens)
        num_aux = {} if draft.shape.num_aux == 3 else {"num_aux_hidden_states": draft.shape.num_aux}
        config["transformer_layer_config"] = {**layer, **dtypes, **num_aux}
        config["draft_vocab_size"] = draft.shape.draft_vocab_size
        config["embed_requires_grad"] = bool(draft.embeddings_trained)
        config |= {"tie_word_embeddings": False, **dtypes, **_draft_fields(draft)}
        return config if draft.boundaries is None else {**config, AUX_IDS: list(draft.boundaries)}
    config |= {**layer, "tie_word_embeddings": False, **dtypes}
    if not draft.shape.family.reads_aux:
        return config
    sizes = {"draft_vocab_size": draft.shape.draft_vocab_size, "num_aux_hidden_states": draft.shape.num_aux}
    fields = _draft_fields(draft)
    if not fields["norm_output"]:  # everybody takes it for false, but SpecForge, which takes false for no final norm
        del fields["norm_output"]
    if draft.embeddings_trained:
        fields["embed_requires_grad"] = True
    config |= {**sizes, **fields}
    if draft.boundaries is not None:  # no ids name the default layers, on which engines agree
        nested = sglang_ids(draft.boundaries, depth=draft.target.depth, model_type=draft.target.model_type)
        config[AUX_IDS] = list(draft.boundaries)
        if nested is not None:
            config["eagle_config"] = {AUX_IDS: list(nested), "use_aux_hidden_state": True}
    return config


def _architecture(draft: TrainedDraft, layout: Layout) -> str:
    if draft.shape.qk_norm and draft.shape.block is None and layout.qk_norm_architectures:
        return layout.qk_norm_architectures[0]
    return draft.shape.family.engine_architectures[layout.engine]


def _speculators_block(draft: TrainedDraft, target_name: str, draft_tokens: int) -> dict[str, Any]:
    algorithm = draft.shape.family.speculators_type
    return {
        "speculators_model_type": algorithm,
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": draft_tokens}],
            "verifier": {"name_or_path": target_name, "architectures": list(draft.target.architectures)},
        },
    }


def _draft_fields(draft: TrainedDraft) -> dict[str, Any]:
    """The norm flags, whose defaults differ between readers, and fields of some drafts only."""
    fields: dict[str, Any] = {name: getattr(draft.shape, name) for name in NORM_FLAGS}
    if draft.shape.has_own_width:
        fields["target_hidden_size"] = draft.shape.target_hidden_size
    if draft.shape.family.has_mask_token:
        fields |= {"mask_token_id": draft.mask_token_id, "pard_token": draft.mask_token_id}
    return fields


def _layer_fields(draft: TrainedDraft) -> dict[str, Any]:
    config = draft.config
    return {
        "model_type": QWEN3 if draft.shape.qk_norm else "llama",
        **{name: getattr(draft.shape, name) for name in _SIZES},
        "hidden_act": config.get("hidden_act", "silu"),
        "rms_norm_eps": config["rms_norm_eps"],
        "max_position_embeddings": config["max_position_embeddings"],
        "attention_bias": draft.shape.attention_bias,
        **_rope_fields(draft.rope),
        **_window_fields(draft.shape),
        **{name: config[name] for name in _TOKEN_IDS if config.get(name) is not None},
    }


def _window_fields(shape: DraftShape) -> dict[str, Any]:
    if not shape.windows:
        return {}
    kinds = ["full_attention" if window is None else "sliding_attention" for window in shape.windows]
    return {"sliding_window": shape.sliding_window, "use_sliding_window": True, "layer_types": kinds}


def _rope_fields(rope: dict[str, Any]) -> dict[str, Any]:
    """Both spellings: rope_theta with rope_scaling, and rope_parameters."""
    scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    return {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "rope_parameters": dict(rope),
        **{name: value for name, value in rope.items() if name == "partial_rotary_factor"},
    }
