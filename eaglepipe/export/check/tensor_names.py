"""Checks the tensors of a draft folder against those that one engine's loader takes, misses and ignores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from eaglepipe.drafts.shape import (
    WEIGHT_DTYPES,
    DraftShape,
    canonical_name,
    tensor_shapes,
    without_identity_maps,
)
from eaglepipe.export.check.findings import Finding, Findings, error, warning
from eaglepipe.export.layouts import Layout

_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16), "weights are bfloat16, float16 or float32"
_MAP_DTYPES = {
    "d2t": ((torch.int64, torch.int32), "offsets are int64 (or int32)"),
    "t2d": ((torch.bool,), "a mask is bool"),
}
NORMS_NOT_SERVED = ("layers.0.input_layernorm.weight", "norm.weight")
_MISSING = {
    "d2t": "without it draft id i is taken for target id i",
    "mask_hidden": "vLLM stops with a ValueError in parallel drafting",
}


def check_names(
    layout: Layout, config: Mapping[str, Any], shape: DraftShape, stored: Mapping[str, torch.Tensor]
) -> Findings:
    """Yield unexpected, missing and misshapen tensors."""
    expected = tensor_shapes(replace(shape, input_norm=False, final_norm=False))  # which no engine serves
    if layout.has_fc_bias and config.get("bias"):
        expected["fc.bias"] = (shape.hidden_size,)
    seen: dict[str, str] = {}
    for raw, tensor in stored.items():
        name = canonical_name(raw)
        if name in seen:
            yield error(raw, f"the same tensor as {seen[name]}", "unexpected")
            continue
        seen[name] = raw
        if reason := _misnamed(layout, raw, shape):
            yield error(raw, reason, "unexpected")
        elif name not in expected:
            yield _unexpected(layout, shape, raw, tensor)
        elif tuple(tensor.shape) != expected[name]:
            size = list(tensor.shape)
            hint = "; it is transposed" if size == list(expected[name])[::-1] and len(size) > 1 else ""
            yield error(raw, f"{size}, the config asks for {list(expected[name])}{hint}", "misshapen")
        else:
            yield from _check_values(layout, shape, raw, tensor)
            yield from _replaced(layout, config, shape, raw)
    for name in expected.keys() - seen.keys():
        if _is_required(layout, config, shape, name):
            yield error(name, _MISSING.get(name, f"{layout.engine} silently uses initial values"), "missing")


def _misnamed(layout: Layout, raw: str, shape: DraftShape) -> str | None:
    if raw.startswith("model.") and layout.is_strict:
        return "vLLM adds `model.` itself and stops with a ValueError at model.model.*; drop the prefix"
    bare = raw.removeprefix("model.")
    if shape.block is not None:
        is_known = layout.engine == "vllm" or not bare.startswith("midlayer.")
        return None if is_known else f"{layout.engine} knows layers.0.* only; rename midlayer to layers.0"
    first, other = layout.first_layer, "midlayer" if layout.first_layer == "layers.0" else "layers.0"
    is_wrong = other == "midlayer" or shape.family.reads_aux  # without aux states it is layers.0 everywhere
    if layout.first_layer_reader and is_wrong and bare.startswith(f"{other}."):
        reader = layout.first_layer_reader
        return f"{reader} knows {first}.* only and starts from random values; rename {other} to {first}"
    if raw == "model.lm_head.weight" and layout.engine == "sglang":
        return "SGLang knows it as lm_head.weight only, and starts from random values; drop the prefix"
    if bare.startswith("aux_norm_") and not layout.reads_aux_norms:
        return "only SGLang knows this name; rename it to fc_norm.0, fc_norm.1, fc_norm.2"
    return None


def _unexpected(layout: Layout, shape: DraftShape, raw: str, tensor: torch.Tensor) -> Finding:
    if canonical_name(raw) not in without_identity_maps({canonical_name(raw): tensor}, shape) and not layout.is_strict:
        return warning(raw, "a map of each id to itself, which is not needed; vLLM stops at such a d2t", "unexpected")
    if harmless := _unread(layout, raw):
        return warning(raw, harmless, "unexpected")
    if layout.is_strict and raw.endswith(".bias"):
        if not bool(tensor.any()):
            return warning(raw, "vLLM ignores biases that it does not expect; this one is zero", "unexpected")
        return error(raw, "vLLM ignores biases that it does not expect: the training of it is lost", "unexpected")
    if layout.is_strict and raw.startswith("input_norm."):
        return error(raw, "vLLM silently drops it unless norm_before_fc is true", "unexpected")
    fate = "vLLM's loader stops with a ValueError" if layout.is_strict else f"{layout.engine} silently ignores it"
    if shape.block is not None and "mask_hidden" in raw and layout.is_strict:
        fate = f"vLLM stops with an assertion: the masked slots of {_label(shape)} are embedded, by mask_token_id"
    if not shape.family.reads_aux and canonical_name(raw) in NORMS_NOT_SERVED:
        fate = f"{fate}; engines have no such norm in {shape.family.draft_label} drafts, and its training is lost"
    return error(raw, fate, "unexpected")


def _unread(layout: Layout, raw: str) -> str | None:
    """Return why it does no harm that a reader leaves a tensor out."""
    if raw == "t2d" and not layout.reads_t2d:
        return "not read, and there is no smaller vocabulary to map to"
    if raw == "lm_head.weight" and layout.engine == "sglang":
        return "SGLang always uses the target's head in its place"
    return None


def _label(shape: DraftShape) -> str:
    return f"{shape.family.draft_label} drafts"


def _check_values(layout: Layout, shape: DraftShape, raw: str, tensor: torch.Tensor) -> Findings:
    name = canonical_name(raw)
    dtypes, rule = _MAP_DTYPES.get(name, _WEIGHT_DTYPES)
    if tensor.dtype not in dtypes:
        yield error(raw, f"{tensor.dtype}; {rule}", "values")
    elif not bool(torch.isfinite(tensor).all()):
        yield error(raw, "it holds NaN or infinite values", "values")
    elif "norm" in name and not bool(tensor.any()):
        yield error(raw, "all zeros: nothing comes out of this norm", "values")
    if name == "fc.bias" and layout.is_strict and (not layout.writes_fc_bias or bool(tensor.any())):
        yield _unexpected(layout, shape, raw, tensor)


def _replaced(layout: Layout, config: Mapping[str, Any], shape: DraftShape, raw: str) -> Findings:
    """Yield embeddings and heads in whose place SGLang takes the target's."""
    name = canonical_name(raw)
    if name == "embed_tokens.weight" and layout.embeddings == "other width" and not shape.has_own_width:
        is_trained = bool(config.get("embed_requires_grad"))
        make, known = (error, ", and these were trained (embed_requires_grad)") if is_trained else (warning, "")
        yield make(raw, f"SGLang always uses the target's embeddings in its place{known}", "unexpected")
    if name == "lm_head.weight" and shape.block is not None and layout.engine in ("sglang", "hf"):
        yield warning(raw, "SGLang always uses the target's head in its place", "unexpected")
    elif name == "lm_head.weight" and layout.shares_head == "null size" and _shares_head(layout, config, shape):
        yield error(raw, "SGLang uses the target's head in its place, as draft_vocab_size is null", "unexpected")


def _is_required(layout: Layout, config: Mapping[str, Any], shape: DraftShape, name: str) -> bool:
    rules = {
        "embed_tokens.weight": shape.has_own_width,
        "t2d": layout.reads_t2d,
        "fc.bias": layout.has_fc_bias,
        "lm_head.weight": not _shares_head(layout, config, shape),
    }
    if shape.block is not None:
        rules["lm_head.weight"] = shape.has_vocab_map or shape.has_own_width
    if name in rules:
        return rules[name]
    layer, _, norm = name.removesuffix(".weight").rpartition(".")
    if (
        shape.block is None
        and shape.family.reads_aux
        and layer != "layers.0"
        and norm in ("input_layernorm", "hidden_norm")
    ):
        return norm in layout.deeper_norms
    return True


def _shares_head(layout: Layout, config: Mapping[str, Any], shape: DraftShape) -> bool:
    if layout.shares_head == "whole vocabulary":
        return not shape.has_vocab_map
    return layout.shares_head == "null size" and config.get("draft_vocab_size", 0) is None


def check_pairs(shape: DraftShape, tensors: Mapping[str, torch.Tensor]) -> Findings:
    """Yield deeper layers with two different input norms: vLLM reads input_layernorm, SGLang hidden_norm."""
    if not shape.family.reads_aux:
        return
    for layer in range(1, shape.num_hidden_layers):
        names = [f"layers.{layer}.{norm}.weight" for norm in ("input_layernorm", "hidden_norm")]
        pair = [tensors[name] for name in names if name in tensors]
        if len(pair) == 2 and {t.dtype for t in pair} <= {*WEIGHT_DTYPES} and not torch.equal(pair[0], pair[1]):
            yield error(names[1], f"differs from {names[0]}: vLLM reads one, SGLang the other", "values")
