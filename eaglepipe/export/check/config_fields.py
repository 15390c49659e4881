"""Checks the fields of a draft's config.json: those that one engine would stop at, misread, or ignore silently."""

from collections.abc import Mapping
from typing import Any

from eaglepipe.drafts.reading import (
    AUX_IDS,
    MASK_TOKEN_NAMES,
    NORM_FLAGS,
    QWEN3,
    SPECULATORS_TYPES,
    eagle_config,
    is_speculators,
    layer_config,
    read_mask_token,
    read_norm_flag,
    read_rope,
)
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.export.check.block_fields import READ_OF_BLOCKS
from eaglepipe.export.check.findings import Findings, error, warning
from eaglepipe.export.layouts import Layout

TARGET_ONLY = ("quantization_config", "text_config", "vision_config")
READ = frozenset(
    {
        "architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "rms_norm_eps", "hidden_act", "vocab_size", "num_hidden_layers", "draft_vocab_size", "rope_theta",
        "rope_scaling", "rope_parameters", "partial_rotary_factor", "max_position_embeddings", "target_hidden_size",
        "tie_word_embeddings", AUX_IDS, "num_aux_hidden_states", "eagle_config", "layer_types",
        "sliding_window", "use_sliding_window", "attention_bias", "mlp_bias", "bias", "torch_dtype", "dtype",
        "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "speculators_version",
        "speculators_model_type", "speculators_config", "transformer_layer_config", "auto_map", "embed_requires_grad",
        "max_window_layers", "use_aux_norm", *NORM_FLAGS, *MASK_TOKEN_NAMES, *TARGET_ONLY,
    }
)  # fmt: skip


def check_config(layout: Layout, config: Mapping[str, Any], shape: DraftShape) -> Findings:
    """Yield findings on all fields but the aux layers."""
    if layout.writes_speculators_format or (layout.reads_speculators_format and is_speculators(config)):
        yield from _speculators_format(config)
    elif is_speculators(config):
        yield error("speculators_config", f"{layout.engine} cannot read the speculators format")
    elif config.get("model_type") != (expected := _model_type(layout, shape)):
        yield error("model_type", f"{config.get('model_type')!r}; it must be {expected!r}")
    yield from _architecture(layout, config, shape)
    yield from _sizes(layout, config, shape)
    if not is_speculators(config) or read_rope(config) is None:  # that format has one spelling
        yield from _rope(layout, layer_config(config))
    if shape.block is None and shape.family.reads_aux:
        yield from _norms(layout, config, shape)
    if shape.block is None:
        yield from _layers(layout, layer_config(config), shape)
    else:
        yield from _target_fields(layer_config(config))
    if shape.family.has_mask_token:
        yield from _mask_token(config, shape)
    known = READ if shape.block is None else READ | READ_OF_BLOCKS
    if strays := sorted(config.keys() - known):
        yield warning("other fields", f"nothing in a draft's loader reads {', '.join(strays)}")


def _model_type(layout: Layout, shape: DraftShape) -> str:
    is_qwen3 = shape.block is not None or (shape.qk_norm and layout.serves_qk_norm)
    return QWEN3 if is_qwen3 else "llama"


def _speculators_format(config: Mapping[str, Any]) -> Findings:
    if "model_type" in config:
        yield error("model_type", "it must be absent at the top level, or the format is not recognised")
    if not isinstance(config.get("transformer_layer_config"), Mapping):
        yield error("transformer_layer_config", "required, with the sizes and model_type of the layers")
    elif layer_config(config).get("model_type") not in ("llama", "qwen3"):
        yield error("transformer_layer_config.model_type", "it must be 'llama' or 'qwen3'")
    if config.get("speculators_model_type") not in tuple(SPECULATORS_TYPES):
        yield error("speculators_model_type", f"it must be {' or '.join(map(repr, SPECULATORS_TYPES))}")
    if not isinstance(config.get("draft_vocab_size"), int):
        yield error("draft_vocab_size", "absent, and 32000 is taken")
    if not isinstance(block := config.get("speculators_config"), Mapping):
        yield error("speculators_config", "required")
        return
    for name in ("algorithm", "default_proposal_method"):
        if not block.get(name):
            yield error(f"speculators_config.{name}", "required")
    methods = block.get("proposal_methods")
    if not isinstance(methods, list) or not methods or "speculative_tokens" not in methods[0]:
        yield error("speculators_config.proposal_methods", "required, with speculative_tokens in the first")
    verifier = block.get("verifier")
    target = verifier.get("name_or_path") if isinstance(verifier, Mapping) else None
    if not isinstance(verifier, Mapping) or "architectures" not in verifier or not target:
        yield error("speculators_config.verifier", "required, with name_or_path and architectures")
    elif str(target).count("/") != 1 or str(target).startswith(("/", ".", "~")):
        message = f"{target!r} is not a Hub id: `vllm serve <draft>` stops, and needs target and draft named separately"
        yield warning("speculators_config.verifier.name_or_path", message)


def _architecture(layout: Layout, config: Mapping[str, Any], shape: DraftShape) -> Findings:
    engine = layout.engine
    if (expected := shape.family.engine_architectures.get(engine)) is None:
        yield error("architectures", f"{engine} serves no {shape.family.draft_label} drafts")
        return
    if is_speculators(config):  # readers go by speculators_model_type
        return
    listed = config.get("architectures")
    accepted = {expected, *layout.also_accepts.get(shape.family.engine_method, ())}
    if shape.qk_norm and shape.block is None and layout.qk_norm_architectures:
        accepted, expected = {*layout.qk_norm_architectures}, layout.qk_norm_architectures[0]
    if not isinstance(listed, list) or len(listed) != 1 or listed[0] not in accepted:
        is_own = str(listed).endswith("DraftModel']")
        hint = "; this is a run's own draft, to be exported" if is_own else ""
        yield error("architectures", f"{listed!r}; {engine} picks the class by it and expects [{expected!r}]{hint}")


def _sizes(layout: Layout, config: Mapping[str, Any], shape: DraftShape) -> Findings:
    inner = layer_config(config)
    depth = inner.get("num_hidden_layers")
    if depth != shape.num_hidden_layers:
        is_deeper = isinstance(depth, int) and depth > shape.num_hidden_layers
        hint = "; it looks like the target's depth" if is_deeper else ""
        yield error("num_hidden_layers", f"{depth}, but {shape.num_hidden_layers} draft layer(s) are stored{hint}")
    if not shape.family.has_draft_vocab:
        if shape.has_vocab_map:
            yield error("draft_vocab_size", f"{shape.family.draft_label} drafts have the target's whole vocabulary")
    elif layout.needs_draft_vocab_size and shape.block is None and "draft_vocab_size" not in config:
        yield error("draft_vocab_size", "absent; SGLang reads the attribute and stops")
    if shape.draft_vocab_size > shape.vocab_size:
        yield error("draft_vocab_size", f"{shape.draft_vocab_size}, more than vocab_size {shape.vocab_size}")
    if shape.has_own_width and not layout.serves_other_width and shape.block is None:
        states = shape.target_hidden_size
        yield error("target_hidden_size", f"{states}: speculators loads no draft of another width than its target's")
    if "head_dim" not in inner:
        default = "hidden_size / heads =" if shape.block is None else "that of Qwen3,"
        yield warning("head_dim", f"absent; readers take {default} {shape.head_dim}")
    if inner.get("rms_norm_eps") is None:
        yield warning("rms_norm_eps", "absent; readers take 1e-6")
    if config.get("tie_word_embeddings") and layout.reads_tied_embeddings:
        yield error("tie_word_embeddings", "true: the draft's lm_head would be its embeddings")
    if "target_hidden_size" in config and config["target_hidden_size"] is None and not is_speculators(config):
        is_read = layout.is_strict or (shape.block is None and shape.family.reads_aux)  # SGLang's EAGLE-3 alone
        make = error if layout.needs_target_width and is_read else warning
        yield make("target_hidden_size", "null stops vLLM and SGLang; leave it out if the widths are equal")
    length = inner.get("max_position_embeddings")
    if length is None:
        yield error("max_position_embeddings", "absent: readers take 2048, and older vLLM crashes there")
    elif length == 2048:
        yield warning("max_position_embeddings", "2048: older vLLM crashes at longer texts; write the target's")


def _rope(layout: Layout, inner: Mapping[str, Any]) -> Findings:
    if read_rope(inner) is None:
        yield error("rope_theta", "absent, in rope_parameters too: engines silently take 10000")
        return
    if layout.writes_speculators_format:
        return
    modern = inner.get("rope_parameters")
    if inner.get("rope_theta") is None:
        make = error if layout.needs_rope_theta else warning
        yield make("rope_theta", "only in rope_parameters: releases that read rope_theta alone take 10000")
        return
    if not isinstance(modern, Mapping) or "rope_theta" not in modern:
        make = error if layout.needs_rope_parameters else warning
        yield make("rope_parameters", "absent: releases that read it alone take a theta of 10000")
        return
    if inner["rope_theta"] != modern["rope_theta"]:
        yield error("rope_theta", f"{inner['rope_theta']}, but {modern['rope_theta']} in rope_parameters")
    scaling = inner.get("rope_scaling") or {}
    old, new = (level.get("rope_type", level.get("type", "default")) for level in (scaling, modern))
    if old != new:
        yield error("rope_scaling", f"of type {old!r}, but {new!r} in rope_parameters")
    for name in sorted((scaling.keys() & modern.keys()) - {"rope_type", "type"}):
        if scaling[name] != modern[name]:
            yield error("rope_scaling", f"{name} is {scaling[name]}, but {modern[name]} in rope_parameters")


def _norms(layout: Layout, config: Mapping[str, Any], shape: DraftShape) -> Findings:
    nested = eagle_config(config)
    for name in NORM_FLAGS:
        if name != "norm_output" and config.get(name) is None and name not in nested:
            differs = name == "norm_before_residual" and is_speculators(config)
            make = error if differs or layout.needs_norm_flags else warning
            yield make(name, f"absent, and readers' defaults differ; taken as {read_norm_flag(config, name)} here")
    if config.get("norm_output") is False and not is_speculators(config):
        yield warning(
            "norm_output", "false, which SpecForge takes for no final norm, all others for absent; leave it out"
        )
    if shape.norm_before_residual and not layout.serves_norm_before_residual:
        yield error("norm_before_residual", "true, which SGLang does not support: it serves as if it were false")
    if shape.norm_before_fc and shape.fc_norm:
        yield error("norm_before_fc", "norm_before_fc and fc_norm exclude each other")
    if config.get("use_aux_norm") and not config.get("fc_norm") and not layout.reads_aux_norms:
        yield error("use_aux_norm", "only SGLang reads it; write fc_norm: true")
    before_fc = nested.get("norm_before_fc")
    if before_fc is not None and "norm_before_fc" in config and bool(before_fc) != bool(config["norm_before_fc"]):
        yield error("eagle_config.norm_before_fc", "contradicts the top level, and wins")
    if nested.get("use_aux_hidden_state") is False:
        yield error("eagle_config.use_aux_hidden_state", "false: a single final state, not aux layers, is read")
    if shape.family.has_mask_token and is_speculators(config) and (shape.fc_norm or shape.norm_output):
        yield error("fc_norm", "fc_norm and norm_output are dropped from P-EAGLE drafts of this format")


def _layers(layout: Layout, inner: Mapping[str, Any], shape: DraftShape) -> Findings:
    yield from _target_fields(inner)
    types = inner.get("layer_types")
    if types is not None and len(types) != shape.num_hidden_layers:
        yield error("layer_types", f"{len(types)} entries for {shape.num_hidden_layers} draft layer(s)")
    if shape.windows and not layout.serves_sliding_window:
        yield error("sliding_window", "SGLang ignores it; full attention is portable")
    if shape.full_attention_layers:
        make = warning if layout.serves_mixed_windows else error
        yield make("layer_types", "some layers have a sliding window and others none: vLLM stops at such a draft")
    if shape.qk_norm and not layout.serves_qk_norm:
        yield error("model_type", "SGLang's drafts have no norms of query and key heads (q_norm, k_norm)")
    if shape.qk_norm and shape.attention_bias:
        yield error("attention_bias", "true, and vLLM drops o_proj.bias of layers with q_norm and k_norm")
    if shape.attention_bias and not layout.serves_attention_bias:
        yield error("attention_bias", "true, and SGLang's drafts have no biases in attention")
    if inner.get("bias") and layout.is_strict:
        yield error("bias", "true: vLLM gives o_proj a bias that no tensor fills; fc has none there")
    if shape.hidden_act != "silu":
        yield error("hidden_act", f"{shape.hidden_act!r}; engines' drafts have silu")
    if shape.mlp_bias:
        yield error("mlp_bias", "true, and no engine is known to load biases of a draft's MLP")


def _target_fields(inner: Mapping[str, Any]) -> Findings:
    for name in TARGET_ONLY:
        if name in inner:
            yield error(name, "a field of the target; it does not describe the draft")


def _mask_token(config: Mapping[str, Any], shape: DraftShape) -> Findings:
    token = read_mask_token(config)
    if token is None:
        yield error("mask_token_id", "P-EAGLE needs it, as mask_token_id and pard_token")
    elif not 0 <= token < shape.vocab_size:
        yield error("mask_token_id", f"{token} is no id of the target's vocabulary of {shape.vocab_size}")
    elif is_speculators(config) and config.get("mask_token_id") is None:
        yield error("mask_token_id", "this format requires this name (KeyError without it)")
    values = {config[name] for name in MASK_TOKEN_NAMES if isinstance(config.get(name), int)}
    if len(values) > 1:
        yield error("pard_token", "the mask token differs between its names")
