"""Checks the fields that only drafts which guess blocks have: blocks, masks, target layers, windows and heads."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from eaglepipe.drafts.block_config import (
    BOUNDARY_IDS,
    DFLASH_CONFIG,
    SPECULATORS_IDS,
    TARGET_LAYER_IDS,
    dflash_config,
    read_block_mask,
    read_boundaries,
    read_outputs,
    whole_numbers,
)
from eaglepipe.drafts.block_shape import MARKOV_HEADS
from eaglepipe.drafts.reading import Ids, is_speculators, layer_config, read_rope
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.export.block_engines import BlockDraft, block_faults, causal_flag
from eaglepipe.export.check.findings import Findings, error, warning
from eaglepipe.export.layouts import Layout
from eaglepipe.export.target_facts import TargetFacts

READ_OF_BLOCKS = frozenset(
    {
        "block_size", "num_target_layers", "target_num_hidden_layers", "sample_from_anchor", "is_causal",
        "sliding_window_non_causal", "markov_rank", "markov_head_type", "enable_confidence_head",
        "confidence_head_with_markov", DFLASH_CONFIG, TARGET_LAYER_IDS, SPECULATORS_IDS,
    }
)  # fmt: skip


def check_block(layout: Layout, config: Mapping[str, Any], shape: DraftShape, target: TargetFacts) -> Findings:
    """Yield findings on the fields of a block draft."""
    assert shape.block is not None
    depth = target.depth or config.get("num_target_layers") or dflash_config(config).get("num_target_layers")
    draft = BlockDraft(
        shape=shape,
        block=shape.block,
        boundaries=read_boundaries(config),
        mask_token_id=read_block_mask(config),
        target_depth=config.get("num_target_layers") or dflash_config(config).get("num_target_layers"),
        target_type=target.model_type,
        rope=read_rope(config),
    )
    yield from (error(name, reason) for name, reason in block_faults(draft, layout.engine))
    yield from _ids(layout, config, draft.boundaries, depth)
    yield from _depth(config, target)
    yield from _windows(layout, config, shape)
    yield from _flags(layout, config, shape)
    head = config.get("markov_head_type")
    if head is not None and str(head).lower() not in MARKOV_HEADS:
        yield error("markov_head_type", f"{head!r}; one of {', '.join(MARKOV_HEADS)}")


def _ids(layout: Layout, config: Mapping[str, Any], boundaries: Ids | None, depth: int | None) -> Findings:
    for level, name in (
        (config, BOUNDARY_IDS), (config, SPECULATORS_IDS), (config, TARGET_LAYER_IDS),
        (dflash_config(config), TARGET_LAYER_IDS),
    ):  # fmt: skip
        if level.get(name) is not None and whole_numbers(level[name]) is None:
            yield error(name, f"{level[name]!r} is not a list of layer numbers")
    if boundaries is None:
        return
    required = SPECULATORS_IDS if is_speculators(config) else TARGET_LAYER_IDS
    if is_speculators(config) and whole_numbers(config.get(SPECULATORS_IDS)) is None:
        yield error(SPECULATORS_IDS, "required by this format")
    outputs = read_outputs(config)
    named = [level.get(TARGET_LAYER_IDS) for level in (config, dflash_config(config))]
    if not is_speculators(config) and named == [None, None] and layout.engine != "vllm":
        yield error(TARGET_LAYER_IDS, "absent: SGLang reads no other name of the target's layers")
    if outputs is not None and boundaries != (expected := tuple(output + 1 for output in outputs)):
        yield error(
            TARGET_LAYER_IDS,
            f"the outputs of layers {list(outputs)}, which are boundaries {list(expected)}, but boundaries "
            f"{list(boundaries)} are named beside them: vLLM reads these, SGLang those",
        )
    if any(later <= earlier for earlier, later in pairwise(boundaries)):
        yield error(required, "they do not ascend; engines capture layers in their order, and fc no longer matches")
    shown, last = (outputs, "depth - 1") if outputs is not None else (boundaries, "depth")
    is_beyond = depth is not None and max(boundaries) > depth
    if min(boundaries) < (1 if outputs is not None else 0) or is_beyond:
        yield error(required, f"{list(shown)} leave the target's {depth} layers: 0 to {last}")
    elif depth is not None:
        yield from _suspected(required, boundaries, depth)


def _suspected(name: str, boundaries: Ids, depth: int) -> Findings:
    """Yield a warning if the layers of the publications would come out of the other way of counting."""
    published = published_outputs(depth, len(boundaries))
    if boundaries == published:
        others = "look like layer outputs, but are read as boundaries"
    elif published and boundaries == tuple(output + 2 for output in published):
        others = "look like boundaries, but are read as layer outputs"
    else:
        return
    yield replace(warning(name, f"{list(boundaries)} as boundaries: the ids {others}"), is_suspicion=True)


def published_outputs(depth: int, count: int) -> Ids:
    """Return the layers whose outputs published drafts read of a target: from 1 to depth - 3, evenly spread."""
    if count == 1:
        return (depth // 2,)
    return tuple(round(1 + index * (depth - 4) / (count - 1)) for index in range(count))


def _depth(config: Mapping[str, Any], target: TargetFacts) -> Findings:
    for level in (config, dflash_config(config)):
        declared = level.get("num_target_layers")
        if declared is not None and target.depth not in (None, declared):
            yield error("num_target_layers", f"{declared}, the target's config has {target.depth} layers")


def _windows(layout: Layout, config: Mapping[str, Any], shape: DraftShape) -> Findings:
    assert shape.block is not None
    inner = layer_config(config)
    slides = "sliding_attention" in (inner.get("layer_types") or ()) or bool(dflash_config(config).get("use_swa"))
    if slides and not shape.windows:
        reason = "no window: vLLM stops at layers with sliding_attention that have none"
        yield error("sliding_window", f"{reason} (a Qwen3 config drops it without use_sliding_window: true)")
    types = inner.get("layer_types")
    if types is not None and len(types) != shape.num_hidden_layers:
        yield error("layer_types", f"{len(types)} entries for {shape.num_hidden_layers} draft layer(s)")
    if shape.full_attention_layers and layout.engine in ("vllm", "speculators"):
        yield warning("layer_types", "layers with and without a window: vLLM needs VLLM_USE_V2_MODEL_RUNNER=1 for them")
    if layout.engine not in ("vllm", "speculators"):
        return
    make = error if layout.engine == "vllm" else warning
    served, wanted = _served_causality(config, shape), causal_flag(shape, shape.block)
    if served != wanted and not (served is None and not shape.windows):
        name, fix = (
            ("sliding_window_non_causal", "true") if is_speculators(config) else (f"{DFLASH_CONFIG}.causal", "false")
        )
        yield make(name, f"vLLM serves {_causality(served)}; the draft has {_causality(wanted)}: {fix} is right for it")


def _served_causality(config: Mapping[str, Any], shape: DraftShape) -> bool | None:
    """Return the value that vLLM takes for all layers, None if it takes those with a window for causal."""
    if is_speculators(config) and shape.family.anchor_slots:  # absent counts as true
        return not config.get("sliding_window_non_causal", True)
    for level, name in ((config, "is_causal"), (dflash_config(config), "causal")):
        if level.get(name) is not None:
            return bool(level[name])
    if shape.full_attention_layers:
        return None
    in_types = "sliding_attention" in (layer_config(config).get("layer_types") or ())
    return bool(shape.windows) and in_types


def _causality(value: bool | None) -> str:
    if value is None:
        return "layers with a window causal inside a block, the others not"
    return f"{'every' if value else 'no'} layer causal inside a block"


def _flags(layout: Layout, config: Mapping[str, Any], shape: DraftShape) -> Findings:
    assert shape.block is not None
    names = ("sample_from_anchor", "block_size", "mask_token_id")
    required = names if is_speculators(config) else ()
    for name in required:
        if config.get(name) is None:
            yield error(name, "absent, and readers' defaults differ")
    if shape.family.anchor_slots and shape.block.sample_from_anchor and layout.engine == "speculators":
        yield warning("sample_from_anchor", "true, which vLLM refuses of DFlash drafts")
    has_head = shape.block.confidence_head and not shape.family.anchor_slots
    if has_head and config.get("enable_confidence_head") is None and layout.engine == "vllm":
        yield error("enable_confidence_head", "absent: vLLM builds no confidence head, and stops at its tensors")
