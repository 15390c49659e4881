"""The config.json of an exported draft: what the engines read, and no other key."""

from pathlib import Path
from typing import Any

from eaglepipe.drafts.aux_ids import sglang_ids
from eaglepipe.drafts.reading import AUX_IDS, NORM_FLAGS
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.export.layouts import Layout
from eaglepipe.export.trained import TrainedDraft

SPECULATORS_VERSION = "0.9.0"  # whose layout this is
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def engine_config(
    draft: TrainedDraft, layout: Layout, *, dtype: str, target_name: str, draft_tokens: int
) -> dict[str, Any]:
    """The config in the engine's format; `draft_tokens` is what speculators proposes to draft at once."""
    if layout.speculators_format:
        return _speculators(draft, layout, dtype=dtype, target_name=target_name, draft_tokens=draft_tokens)
    return _native(draft, layout, dtype)


def _native(draft: TrainedDraft, layout: Layout, dtype: str) -> dict[str, Any]:
    shape = draft.shape
    config = {
        "architectures": [layout.architectures[shape.family]],
        "model_type": "llama",
        **_sizes(draft),
        **_token_ids(draft),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if shape.family == "eagle1":
        return config
    config |= {"draft_vocab_size": shape.draft_vocab_size, "num_aux_hidden_states": shape.num_aux, **_norm_flags(shape)}
    if shape.target_hidden_size != shape.hidden_size:
        config["target_hidden_size"] = shape.target_hidden_size
    if shape.family == "peagle":
        config |= {"mask_token_id": draft.mask_token_id, "pard_token": draft.mask_token_id}
    return {**config, **_aux_layers(draft)}


def _aux_layers(draft: TrainedDraft) -> dict[str, Any]:
    """No ids for the default layers, on which engines agree; else each engine's spelling where it looks for it."""
    if draft.boundaries is None:
        return {}
    outputs = sglang_ids(draft.boundaries, depth=draft.target.depth, is_gpt_oss=draft.target.model_type == "gpt_oss")
    return {
        AUX_IDS: list(draft.boundaries),
        "eagle_config": {AUX_IDS: list(outputs), "use_aux_hidden_state": True},
    }


def _speculators(
    draft: TrainedDraft, layout: Layout, *, dtype: str, target_name: str, draft_tokens: int
) -> dict[str, Any]:
    shape = draft.shape
    algorithm = "peagle" if shape.family == "peagle" else "eagle3"
    layer = {"model_type": "llama", **_sizes(draft), **_token_ids(draft), "torch_dtype": dtype, "dtype": dtype}
    if shape.num_aux != 3:
        layer["num_aux_hidden_states"] = shape.num_aux
    config = {
        "architectures": [layout.architectures[shape.family]],
        "speculators_model_type": algorithm,
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": algorithm,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": draft_tokens}],
            "verifier": {"name_or_path": target_name, "architectures": list(draft.target.architectures)},
        },
        "transformer_layer_config": layer,
        "draft_vocab_size": shape.draft_vocab_size,
        "embed_requires_grad": bool(draft.embeddings_trained),
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "dtype": dtype,
        **_norm_flags(shape),
    }
    if shape.target_hidden_size != shape.hidden_size:
        config["target_hidden_size"] = shape.target_hidden_size
    if shape.family == "peagle":
        config |= {"mask_token_id": draft.mask_token_id, "pard_token": draft.mask_token_id}
    if draft.boundaries is not None:
        config[AUX_IDS] = list(draft.boundaries)
    return config


def _sizes(draft: TrainedDraft) -> dict[str, Any]:
    shape, config = draft.shape, draft.config
    return {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": shape.num_layers,
        "vocab_size": shape.vocab_size,
        "hidden_act": config.get("hidden_act", "silu"),
        "rms_norm_eps": config["rms_norm_eps"],
        "max_position_embeddings": config["max_position_embeddings"],
        "attention_bias": shape.attention_bias,
        **rope_fields(draft.rope),
    }


def rope_fields(rope: dict[str, Any]) -> dict[str, Any]:
    """Both spellings: rope_theta with rope_scaling, and rope_parameters."""
    extra = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
    fields = {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if extra["rope_type"] == "default" else extra,
        "rope_parameters": dict(rope),
    }
    if "partial_rotary_factor" in rope:
        fields["partial_rotary_factor"] = rope["partial_rotary_factor"]
    return fields


def _norm_flags(shape: DraftShape) -> dict[str, bool]:
    """All four, always: readers' defaults differ."""
    return {name: getattr(shape, name) for name in NORM_FLAGS}


def _token_ids(draft: TrainedDraft) -> dict[str, Any]:
    return {name: draft.config[name] for name in _TOKEN_IDS if draft.config.get(name) is not None}


def public_name(target_path: str | None) -> str | None:
    """A target's name that may be published: a Hub id as it is, of a local path the last part alone."""
    if not target_path:
        return None
    is_local = (
        Path(target_path).expanduser().exists() or target_path.startswith(("/", ".", "~")) or target_path.count("/") > 1
    )
    return Path(target_path).name if is_local else target_path
