"""Checks the tensors of a draft folder against what one engine's loader takes, misses and ignores."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from eaglepipe.drafts.shape import DraftShape, canonical_name, tensor_shapes
from eaglepipe.export.check.findings import Finding, error, warning
from eaglepipe.export.engines import Engine

WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNEXPECTED: dict[Engine, str] = {
    "vllm": "vLLM's loader stops with a ValueError",
    "sglang": "SGLang ignores it without a word",
    "speculators": "speculators ignores it without a word",
    "hf": "no engine reads it, and vLLM's loader stops",
}
MISSING: dict[Engine, str] = {
    "vllm": "vLLM says nothing and serves initial values",
    "sglang": "SGLang says nothing and serves initial values",
    "speculators": "speculators starts from random values",
    "hf": "engines serve initial values without a word",
}


def check_names(
    engine: Engine, config: Mapping[str, Any], shape: DraftShape, stored: Mapping[str, torch.Tensor]
) -> Iterator[Finding]:
    """Unexpected, missing and misshapen tensors."""
    expected = tensor_shapes(shape)
    seen: dict[str, str] = {}
    for raw, tensor in stored.items():
        reason = _misnamed(engine, raw, shape)
        name = canonical_name(raw)
        if name in seen:
            yield error("unexpected", raw, f"the same tensor as {seen[name]}")
            continue
        seen[name] = raw
        if reason:
            yield error("unexpected", raw, reason)
        elif name not in expected:
            yield _unexpected(engine, raw, tensor)
        elif tuple(tensor.shape) != expected[name]:
            yield error("misshapen", raw, _shape_message(tuple(tensor.shape), expected[name]))
        else:
            yield from _check_stored(engine, shape, raw, tensor)
    for name in expected.keys() - seen.keys():
        if _is_required(engine, config, shape, name):
            yield error("missing", name, _missing_message(engine, name))


def _misnamed(engine: Engine, raw: str, shape: DraftShape) -> str | None:
    if raw.startswith("model.") and engine in ("vllm", "hf"):
        return "vLLM adds `model.` itself and stops with a ValueError at model.model.*; drop the prefix"
    bare = raw.removeprefix("model.")
    if engine == "speculators" and bare.startswith("midlayer."):
        return "speculators knows layers.0.* only and starts from random values; rename midlayer to layers.0"
    if engine == "hf" and bare.startswith("layers.0.") and shape.family != "eagle1":
        return "the EAGLE code knows midlayer.* only and starts from random values; rename layers.0 to midlayer"
    if bare.startswith("aux_norm_") and engine != "sglang":
        return "only SGLang knows this name; rename it to fc_norm.0, fc_norm.1, fc_norm.2"
    return None


def _unexpected(engine: Engine, raw: str, tensor: torch.Tensor) -> Finding:
    if raw == "t2d" and engine in ("vllm", "sglang"):
        return warning("unexpected", raw, "not read, and there is no smaller vocabulary to map to")
    if engine in ("vllm", "hf") and raw.endswith(".bias"):
        if not bool(tensor.any()):
            return warning("unexpected", raw, "vLLM ignores biases that it does not expect; these are zeros")
        return error("unexpected", raw, "vLLM ignores biases that it does not expect: what was trained is lost")
    if engine == "vllm" and raw.startswith("input_norm."):
        return error("unexpected", raw, "vLLM drops it without a word unless norm_before_fc is true")
    return error("unexpected", raw, UNEXPECTED[engine])


def _shape_message(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    hint = "; it is transposed" if found == expected[::-1] and len(found) > 1 else ""
    return f"{list(found)}, the config asks for {list(expected)}{hint}"


def _check_stored(engine: Engine, shape: DraftShape, raw: str, tensor: torch.Tensor) -> Iterator[Finding]:
    name = canonical_name(raw)
    if name == "d2t":
        if tensor.dtype not in (torch.int64, torch.int32):
            yield error("values", raw, f"{tensor.dtype}; offsets are int64 (or int32)")
    elif name == "t2d":
        if tensor.dtype != torch.bool:
            yield error("values", raw, f"{tensor.dtype}; a mask is bool")
    elif tensor.dtype not in WEIGHT_DTYPES:
        yield error("values", raw, f"{tensor.dtype}; weights are bfloat16, float16 or float32")
    elif not bool(torch.isfinite(tensor).all()):
        yield error("values", raw, "it holds NaN or infinite values")
    if name == "embed_tokens.weight" and engine == "sglang" and shape.hidden_size == shape.target_hidden_size:
        yield warning("unexpected", raw, "SGLang always uses the target's embeddings in its place")
    if name == "fc.bias" and (engine == "vllm" or (engine == "hf" and bool(tensor.any()))):
        yield _unexpected(engine, raw, tensor)
    if shape.family == "eagle1" and name == "lm_head.weight" and engine == "sglang":
        yield warning("unexpected", raw, "SGLang uses the target's lm_head")


def _missing_message(engine: Engine, name: str) -> str:
    if name == "d2t":
        return "without it draft id i is taken for target id i"
    if name == "mask_hidden":
        return "vLLM stops with a ValueError in parallel drafting"
    return MISSING[engine]


def _is_required(engine: Engine, config: Mapping[str, Any], shape: DraftShape, name: str) -> bool:
    own_width = shape.hidden_size != shape.target_hidden_size
    rules: dict[str, Callable[[], bool]] = {
        "embed_tokens.weight": lambda: own_width,
        "t2d": lambda: engine in ("speculators", "hf"),
        "fc.bias": lambda: engine == "sglang",
        "lm_head.weight": lambda: not _shares_head(engine, config, shape),
    }
    if name in rules:
        return rules[name]()
    _, _, norm = name.partition(".hidden_norm")
    is_deeper = name.startswith("layers.") and not name.startswith("layers.0.") and shape.family != "eagle1"
    if is_deeper and norm:
        return engine in ("sglang", "hf")
    if is_deeper and ".input_layernorm" in name:
        return engine != "sglang"
    return True


def _shares_head(engine: Engine, config: Mapping[str, Any], shape: DraftShape) -> bool:
    if engine == "vllm":
        return not shape.has_vocab_map
    return engine == "sglang" and "draft_vocab_size" in config and config["draft_vocab_size"] is None


def check_pairs(shape: DraftShape, canonical: Mapping[str, torch.Tensor]) -> Iterator[Finding]:
    """Deeper layers: vLLM reads input_layernorm, SGLang hidden_norm; both must be the same norm."""
    if shape.family == "eagle1":
        return
    for layer in range(1, shape.num_layers):
        names = [f"layers.{layer}.{norm}.weight" for norm in ("input_layernorm", "hidden_norm")]
        pair = [canonical[name] for name in names if name in canonical]
        if len(pair) == 2 and not torch.equal(pair[0], pair[1]):
            yield error("values", names[1], f"differs from {names[0]}: vLLM reads one, SGLang the other")
