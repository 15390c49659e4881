"""Checks how a config names the aux layers: readers differ by one, and none of them ever reports it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from eaglepipe.drafts.aux_ids import (
    likely_convention,
    sglang_boundaries,
    sglang_fault,
    sglang_ids,
    to_boundaries,
    to_outputs,
)
from eaglepipe.drafts.reading import (
    AUX_IDS,
    Ids,
    eagle_config,
    is_speculators,
    layer_config,
    read_aux,
    read_num_aux,
    read_qk_norm,
)
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.export.check.findings import Finding, Findings, error, warning
from eaglepipe.export.layouts import Layout
from eaglepipe.export.target_facts import TargetFacts

NESTED = f"eagle_config.{AUX_IDS}"


def check_aux(layout: Layout, config: Mapping[str, Any], shape: DraftShape, target: TargetFacts) -> Findings:
    """Yield findings on the aux layers."""
    yield from _malformed(config)
    top, nested = read_aux(config)
    if layout.reads_nested_ids == "outputs" and "sglang" in shape.family.engine_architectures:
        yield from _in_sglang(top or _captured_by_sglang(nested, target), shape, target)
    if top and nested:
        yield from _disagreement(top, nested, target)
    elif nested and layout.reads_top_ids:
        yield _only_nested(layout, config, nested, target.depth)
    elif nested:
        yield from _suspected(NESTED, nested, "outputs", target.depth, reader="SGLang takes them for layer outputs")
    elif top and layout.reads_nested_ids == "outputs" and not is_speculators(config):
        yield _only_top(top, target.depth)
    elif top and not is_speculators(config):  # in that format, whoever writes ids writes boundaries
        reader = f"{layout.engine} takes them for boundaries"
        yield from _suspected(AUX_IDS, top, "boundaries", target.depth, reader=reader)
    last_nested = target.depth if target.depth is None or target.model_type == "gpt_oss" else target.depth - 1
    yield from _range_and_order(AUX_IDS, top, target.depth, target.depth)
    yield from _range_and_order(NESTED, nested, last_nested, target.depth)
    ids, count = top or nested, _expected_count(layout, config)
    if ids is not None and len(ids) != count:
        yield error("num_aux_hidden_states", f"{layout.engine} expects {count} aux layers, the ids name {len(ids)}")


def _in_sglang(boundaries: Ids | None, shape: DraftShape, target: TargetFacts) -> Findings:
    if shape.fc_inputs == shape.hidden_size:
        reason = f"SGLang skips fc and fc_norm where the states together have the draft's width, {shape.hidden_size}"
        yield error("num_aux_hidden_states", f"{shape.num_aux}: {reason}")
    if boundaries and (fault := sglang_fault(boundaries, depth=target.depth, model_type=target.model_type)):
        yield error(AUX_IDS, fault)


def _captured_by_sglang(nested: Ids | None, target: TargetFacts) -> Ids | None:
    return nested and sglang_boundaries(nested, depth=target.depth, model_type=target.model_type)


def _expected_count(layout: Layout, config: Mapping[str, Any]) -> int:
    """Return the number of aux layers that `fc` of an engine has; vLLM's Llama drafts never count top-level ids."""
    counts_top = layout.engine == "speculators" or read_qk_norm(config, {})
    if is_speculators(config) and not counts_top:
        declared = layer_config(config).get("num_aux_hidden_states")
        return declared if isinstance(declared, int) else 3
    top, nested = read_aux(config)
    if counts_top and top and not nested and config.get("num_aux_hidden_states") is None:
        return len(top)
    return read_num_aux(config)


def _malformed(config: Mapping[str, Any]) -> Findings:
    for name, level in ((AUX_IDS, config), (NESTED, eagle_config(config))):
        value = level.get(AUX_IDS)
        is_valid = isinstance(value, list) and value and all(type(item) is int for item in value)
        if value is not None and not is_valid:
            yield error(name, f"{value!r} is not a list of layer numbers")


def _disagreement(top: Ids, nested: Ids, target: TargetFacts) -> Findings:
    expected = sglang_ids(top, depth=target.depth, model_type=target.model_type)
    if expected is None or nested == expected:
        return
    hint = ""
    if target.depth is None and target.model_type in (None, "gpt_oss") and nested == top:
        hint = "; right only for a gpt-oss target whose depth is the last id (--target would settle it)"
    yield error(
        NESTED,
        f"vLLM captures boundaries {list(top)}, SGLang {list(_captured_by_sglang(nested, target) or ())}; "
        f"for boundaries {list(top)} this must be {list(expected)}{hint}",
    )


def _only_nested(layout: Layout, config: Mapping[str, Any], nested: Ids, depth: int | None) -> Finding:
    if layout.reads_nested_ids is None:
        return error(NESTED, f"speculators reads {AUX_IDS} at the top level only, and uses the default layers")
    is_read_alike = eagle_config(config).get("layer_ids") == list(nested)  # by vLLM's V1 and V2 runners
    is_boundaries = likely_convention(nested, depth) == "boundaries"
    if is_boundaries and is_read_alike and layout.reads_nested_ids == "boundaries":
        return warning(NESTED, "right for vLLM; SGLang would add 1 to each")
    return error(
        NESTED,
        f"vLLM takes {list(nested)} for boundaries, SGLang for layer outputs (boundaries "
        f"{list(to_boundaries(nested))}), and vLLM's V2 runner looks for layer_ids; write the boundaries as "
        f"{AUX_IDS} at the top level",
    )


def _only_top(top: Ids, depth: int | None) -> Finding:
    if likely_convention(top, depth) == "boundaries" and 0 not in top and depth not in top:
        return warning(AUX_IDS, "SGLang ignores it, and uses the default layers, which are the same")
    outputs = list(to_outputs(top))
    return error(AUX_IDS, f"SGLang ignores it and captures the default layers; add {NESTED} with {outputs}")


def _suspected(name: str, ids: Ids, reading: str, depth: int | None, *, reader: str) -> Findings:
    likely = likely_convention(ids, depth)
    if likely is not None and likely != reading:
        named = "boundaries" if likely == "boundaries" else "layer outputs (NVIDIA ModelOpt and SpecForge write those)"
        yield replace(error(name, f"{list(ids)} look like {named}, but {reader}"), is_suspicion=True)
    elif likely is None and ids[0] == 1 and reading == "boundaries":
        yield replace(warning(name, f"{reader}; a first id of 1 often means layer outputs"), is_suspicion=True)


def _range_and_order(name: str, ids: Ids | None, last: int | None, depth: int | None) -> Findings:
    if ids is None:
        return
    if any(later <= earlier for earlier, later in pairwise(ids)):
        yield error(name, f"{list(ids)} do not ascend; vLLM sorts them, and the chunks of fc no longer match")
    if min(ids) < 0 or (last is not None and max(ids) > last):
        yield error(name, f"{list(ids)} leave the target's {depth} layers")
