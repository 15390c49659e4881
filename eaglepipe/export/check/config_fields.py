"""Checks the fields of a draft's config.json: what one engine would stop at, misread, or ignore without a word."""

from collections.abc import Iterator, Mapping
from typing import Any

from eaglepipe.drafts.reading import (
    AUX_IDS,
    MASK_TOKEN_NAMES,
    NORM_FLAGS,
    eagle_config,
    flag,
    is_speculators,
    layer_config,
    read_mask_token,
    read_rope,
)
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.export.check.findings import Finding, error, warning
from eaglepipe.export.engines import Engine
from eaglepipe.export.layouts import LAYOUTS

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
        *NORM_FLAGS, *MASK_TOKEN_NAMES, *TARGET_ONLY,
    }
)  # fmt: skip
ALSO_VLLM = frozenset({"Eagle3LlamaForCausalLM", "PEagleDraftModel", "Eagle3Qwen3ForCausalLM", "LlamaForCausalLM"})


def check_config(engine: Engine, config: Mapping[str, Any], shape: DraftShape) -> Iterator[Finding]:
    """Findings on all fields but the aux layers."""
    yield from _format(engine, config)
    yield from _family(engine, config, shape)
    yield from _sizes(engine, config, shape)
    yield from _rope(engine, config)
    if shape.family != "eagle1":
        yield from _norms(engine, config, shape)
    yield from _target_keys(engine, config, shape)
    if shape.family == "peagle":
        yield from _mask_token(config)
    strays = sorted(config.keys() - READ)
    if strays:
        yield warning("field", "other fields", f"nothing in a draft's loader reads {', '.join(strays)}")


def _format(engine: Engine, config: Mapping[str, Any]) -> Iterator[Finding]:
    nested = is_speculators(config)
    if engine == "speculators" or (engine == "vllm" and nested):
        yield from _speculators_format(config)
    elif nested:
        yield error("field", "speculators_config", f"{engine} cannot read the speculators format")
    elif config.get("model_type") != "llama":
        yield error("field", "model_type", f"{config.get('model_type')!r}; it must be 'llama'")


def _speculators_format(config: Mapping[str, Any]) -> Iterator[Finding]:
    if "model_type" in config:
        yield error("field", "model_type", "it must be absent at the top level, or the format is not recognised")
    if not isinstance(config.get("transformer_layer_config"), Mapping):
        yield error("field", "transformer_layer_config", "required, with the sizes and model_type of the layers")
    elif layer_config(config).get("model_type") not in ("llama", "qwen3"):
        yield error("field", "transformer_layer_config.model_type", "it must be 'llama' or 'qwen3'")
    if config.get("speculators_model_type") not in ("eagle3", "peagle"):
        yield error("field", "speculators_model_type", "it must be 'eagle3' or 'peagle'")
    if not isinstance(config.get("draft_vocab_size"), int):
        yield error("field", "draft_vocab_size", "absent, and 32000 is taken")
    block = config.get("speculators_config")
    if not isinstance(block, Mapping):
        yield error("field", "speculators_config", "required")
        return
    for name in ("algorithm", "default_proposal_method"):
        if not block.get(name):
            yield error("field", f"speculators_config.{name}", "required")
    methods = block.get("proposal_methods")
    if not isinstance(methods, list) or not methods or "speculative_tokens" not in methods[0]:
        yield error("field", "speculators_config.proposal_methods", "required, with speculative_tokens in the first")
    verifier = block.get("verifier")
    named = verifier.get("name_or_path") if isinstance(verifier, Mapping) else None
    if not isinstance(verifier, Mapping) or "architectures" not in verifier or not named:
        yield error("field", "speculators_config.verifier", "required, with name_or_path and architectures")
    elif str(named).count("/") != 1 or str(named).startswith(("/", ".", "~")):
        yield warning(
            "field", "speculators_config.verifier.name_or_path",
            f"{named!r} is not a Hub id: `vllm serve <draft>` would stop, and takes target and draft apart instead",
        )  # fmt: skip


def _family(engine: Engine, config: Mapping[str, Any], shape: DraftShape) -> Iterator[Finding]:
    served = LAYOUTS[engine].architectures
    if shape.family not in served:
        yield error("field", "architectures", f"{engine} serves no drafts of this kind ({shape.family})")
        return
    if is_speculators(config):  # readers go by speculators_model_type
        return
    given = config.get("architectures")
    wanted, accepted = served[shape.family], set()
    if engine == "vllm" and shape.family != "eagle1":
        accepted = set(ALSO_VLLM)
    if not isinstance(given, list) or len(given) != 1 or given[0] not in {wanted, *accepted}:
        hint = "; this is a run's own draft, to be exported" if str(given).endswith("DraftModel']") else ""
        yield error("field", "architectures", f"{given!r}; {engine} goes by it and wants [{wanted!r}]{hint}")


def _sizes(engine: Engine, config: Mapping[str, Any], shape: DraftShape) -> Iterator[Finding]:
    inner = layer_config(config)
    depth = inner.get("num_hidden_layers")
    if depth != shape.num_layers:
        hint = "; it looks like the target's depth" if isinstance(depth, int) and depth > shape.num_layers else ""
        yield error("field", "num_hidden_layers", f"{depth}, but {shape.num_layers} draft layer(s) are stored{hint}")
    if shape.family == "eagle1":
        if shape.has_vocab_map:
            yield error("field", "draft_vocab_size", "EAGLE-1/2 drafts have the target's whole vocabulary")
    elif engine in ("sglang", "hf") and "draft_vocab_size" not in config:
        yield error("field", "draft_vocab_size", "absent; SGLang reads the attribute and stops")
    if shape.draft_vocab_size > shape.vocab_size:
        yield error("field", "draft_vocab_size", f"{shape.draft_vocab_size}, more than vocab_size {shape.vocab_size}")
    if "head_dim" not in inner:
        yield warning("field", "head_dim", f"absent; readers take hidden_size / heads = {shape.head_dim}")
    if inner.get("rms_norm_eps") is None:
        yield warning("field", "rms_norm_eps", "absent; readers take 1e-6")
    if config.get("tie_word_embeddings"):
        yield error("field", "tie_word_embeddings", "true: the draft's lm_head would be its embeddings")
    if "target_hidden_size" in config and config["target_hidden_size"] is None and not is_speculators(config):
        make = error if engine in ("vllm", "hf") else warning
        yield make("field", "target_hidden_size", "null breaks vLLM; leave it out where the widths are equal")
    yield from _positions(inner)


def _positions(inner: Mapping[str, Any]) -> Iterator[Finding]:
    length = inner.get("max_position_embeddings")
    if length is None:
        yield error("field", "max_position_embeddings", "absent: readers take 2048, and older vLLM crashes there")
    elif length == 2048:
        yield warning(
            "field", "max_position_embeddings", "2048: older vLLM crashes at longer texts; write the target's"
        )


def _rope(engine: Engine, config: Mapping[str, Any]) -> Iterator[Finding]:
    inner = layer_config(config)
    modern = inner.get("rope_parameters")
    has_modern = isinstance(modern, Mapping) and "rope_theta" in modern
    if read_rope(config) is None:
        yield error("field", "rope_theta", "absent, in rope_parameters too: engines take 10000 without a word")
        return
    if engine == "speculators":
        return
    if inner.get("rope_theta") is None:
        yield error("field", "rope_theta", "only in rope_parameters: releases that read rope_theta alone take 10000")
    elif not has_modern:
        make = error if engine in ("sglang", "hf") else warning
        yield make("field", "rope_parameters", "absent: releases that read it alone take a theta of 10000")
    else:
        yield from _rope_spellings(inner, modern)


def _rope_spellings(inner: Mapping[str, Any], modern: Any) -> Iterator[Finding]:
    if inner["rope_theta"] != modern["rope_theta"]:
        yield error("field", "rope_theta", f"{inner['rope_theta']}, but rope_parameters say {modern['rope_theta']}")
    old, new = inner.get("rope_scaling") or {}, modern
    kinds = [level.get("rope_type", level.get("type", "default")) for level in (old, new)]
    if kinds[0] != kinds[1]:
        yield error("field", "rope_scaling", f"of type {kinds[0]!r}, but rope_parameters say {kinds[1]!r}")
    for name in sorted((old.keys() & new.keys()) - {"rope_type", "type"}):
        if old[name] != new[name]:
            yield error("field", "rope_scaling", f"{name} is {old[name]}, but rope_parameters say {new[name]}")


def _norms(engine: Engine, config: Mapping[str, Any], shape: DraftShape) -> Iterator[Finding]:
    for name in NORM_FLAGS:
        if config.get(name) is None and name not in eagle_config(config):
            differs = name == "norm_before_residual" and is_speculators(config)
            make = error if differs or engine == "hf" else warning
            yield make("field", name, f"absent, and readers' defaults differ; here it counts as {flag(config, name)}")
    if shape.norm_before_residual and engine in ("sglang", "hf"):
        yield error(
            "field", "norm_before_residual", "true, which SGLang does not support: it serves as if it were false"
        )
    if shape.norm_before_fc and shape.fc_norm:
        yield error("field", "norm_before_fc", "norm_before_fc and fc_norm exclude each other")
    nested = eagle_config(config).get("norm_before_fc")
    if nested is not None and "norm_before_fc" in config and bool(nested) != bool(config["norm_before_fc"]):
        yield error("field", "eagle_config.norm_before_fc", "contradicts the top level, and wins")
    if eagle_config(config).get("use_aux_hidden_state") is False:
        yield error(
            "field", "eagle_config.use_aux_hidden_state", "false: a single final state, not aux layers, is read"
        )
    if shape.family == "peagle" and is_speculators(config) and (shape.fc_norm or shape.norm_output):
        yield error("field", "fc_norm", "fc_norm and norm_output are dropped from P-EAGLE drafts of this format")


def _target_keys(engine: Engine, config: Mapping[str, Any], shape: DraftShape) -> Iterator[Finding]:
    inner = layer_config(config)
    for name in TARGET_ONLY:
        if name in inner:
            yield error("field", name, "a field of the target; it does not describe the draft")
    types = inner.get("layer_types")
    if types is not None and len(types) != shape.num_layers:
        yield error("field", "layer_types", f"{len(types)} entries for {shape.num_layers} draft layer(s)")
    if engine in ("sglang", "hf") and (inner.get("sliding_window") or "sliding_attention" in (types or ())):
        yield error("field", "sliding_window", "SGLang ignores it; full attention is portable")
    if shape.attention_bias and engine == "sglang":
        yield error("field", "attention_bias", "true, and SGLang's drafts have no biases in attention")
    if shape.mlp_bias:
        yield error("field", "mlp_bias", "true, and no engine is known to load biases of a draft's MLP")


def _mask_token(config: Mapping[str, Any]) -> Iterator[Finding]:
    if read_mask_token(config) is None:
        yield error("field", "mask_token_id", "P-EAGLE needs it, as mask_token_id and pard_token")
    elif is_speculators(config) and config.get("mask_token_id") is None:
        yield error("field", "mask_token_id", "this format asks for this name (KeyError without it)")
    values = {config[name] for name in MASK_TOKEN_NAMES if isinstance(config.get(name), int)}
    if len(values) > 1:
        yield error("field", "pard_token", "the mask token differs between its names")
