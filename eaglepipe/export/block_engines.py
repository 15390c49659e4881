"""What engines read, misread and refuse of drafts that guess blocks (DFlash, DSpark)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eaglepipe.drafts.aux_ids import to_outputs
from eaglepipe.drafts.block_config import BOUNDARY_IDS, DFLASH_CONFIG, SPECULATORS_IDS, TARGET_LAYER_IDS
from eaglepipe.drafts.block_shape import MARKOV_HEADS, BlockShape, MarkovHead
from eaglepipe.drafts.reading import Ids
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.export.layouts import Engine


@dataclass(frozen=True, kw_only=True)
class BlockRules:
    """How one engine serves block drafts."""

    reader: str  # whose code a message is about
    vocab: bool = True  # a draft vocabulary smaller than the target's
    other_width: bool = False  # another hidden size than the target's
    whole_windows: bool = True  # layers with a window that read their whole block
    partial_rotary: bool = True
    needs_target_depth: bool = False  # num_target_layers bounds the ids
    any_anchor: bool = False  # DFlash whose anchor guesses, and DSpark whose anchor does not
    bonus_anchor: bool = True  # DSpark whose anchor does not guess
    markov_heads: tuple[MarkovHead, ...] = MARKOV_HEADS


_SGLANG = BlockRules(
    reader="SGLang",
    vocab=False,
    whole_windows=False,
    partial_rotary=False,
    needs_target_depth=True,
    bonus_anchor=False,
)
_PORTABLE = BlockRules(**{**vars(_SGLANG), "markov_heads": ("vanilla",)})
RULES: dict[Engine, BlockRules] = {
    "vllm": BlockRules(reader="vLLM", other_width=True, markov_heads=("vanilla",)),
    "sglang": _SGLANG,
    "speculators": BlockRules(reader="speculators", any_anchor=True),
    "hf": _PORTABLE,
}


@dataclass(frozen=True, kw_only=True)
class BlockDraft:
    """What the rules are about: a draft to be exported, or one that is checked."""

    shape: DraftShape
    block: BlockShape
    boundaries: Ids | None
    mask_token_id: int | None
    target_depth: int | None
    target_type: str | None = None  # model_type
    rope: dict[str, Any] | None = None


def block_faults(draft: BlockDraft, engine: Engine) -> Iterator[tuple[str, str]]:
    """Yield field and reason of all that an engine serves wrongly, or not at all."""
    rules, shape, block = RULES[engine], draft.shape, draft.block
    label = shape.family.draft_label
    if block.block_size is None:
        yield "block_size", "absent: SGLang takes 16, speculators 8"
    elif (block.num_guesses or 0) < 1 or block.block_size < 2:
        yield "block_size", f"{block.block_size}: a block is the anchor and at least one guess, 2 or more"
    if draft.mask_token_id is None:
        yield "mask_token_id", f"absent, and {label} drafts fill the slots to guess with it"
    elif not 0 <= draft.mask_token_id < shape.vocab_size:
        yield "mask_token_id", f"{draft.mask_token_id} is no id of the target's vocabulary of {shape.vocab_size}"
    if draft.boundaries is None:
        yield TARGET_LAYER_IDS, "absent: the draft has no target layers to read"
    if shape.has_vocab_map and not rules.vocab:
        yield (
            "draft_vocab_size",
            (
                f"{shape.draft_vocab_size} of {shape.vocab_size}: {rules.reader} has no draft vocabulary (d2t) of "
                f"{label} drafts, and takes the target's head; use --to vllm, or train without vocab.draft_size"
            ),
        )
    if shape.has_own_width and not rules.other_width:
        states = shape.target_hidden_size
        yield (
            "target_hidden_size",
            f"{states}: {rules.reader} loads no {label} draft of another width than its target's",
        )
    if shape.hidden_act != "silu":
        yield "hidden_act", f"engines' drafts have silu, not {shape.hidden_act}"
    if shape.mlp_bias:
        yield "mlp_bias", "true, and no engine is known to load biases of a draft's MLP"
    yield from _anchor_faults(draft, rules)
    yield from _window_faults(draft, rules)
    if rules.needs_target_depth and draft.target_depth is None:
        yield (
            "num_target_layers",
            "absent, and SGLang takes the draft's own depth for it; an export with --target has it",
        )
    last_is_read = draft.boundaries is not None and draft.target_depth in draft.boundaries
    if rules.needs_target_depth and last_is_read and draft.target_type != "gpt_oss":
        yield TARGET_LAYER_IDS, f"SGLang captures nothing at the target's final boundary, {draft.target_depth}"
    if not rules.partial_rotary and (draft.rope or {}).get("partial_rotary_factor", 1.0) != 1.0:
        yield "partial_rotary_factor", f"{rules.reader} turns whole heads of block drafts"


def _anchor_faults(draft: BlockDraft, rules: BlockRules) -> Iterator[tuple[str, str]]:
    block, label = draft.block, draft.shape.family.draft_label
    if draft.shape.family.anchor_slots:  # DFlash
        if block.sample_from_anchor and not rules.any_anchor:
            yield "sample_from_anchor", f"true: engines guess nothing at the anchor of {label} drafts"
        return
    if not block.sample_from_anchor and not rules.bonus_anchor:
        yield "sample_from_anchor", f"false: {rules.reader} takes the anchor's slot of {label} drafts for a guess"
    if not block.markov_rank and rules.reader != "speculators":
        yield "markov_rank", f"0: {rules.reader} loads no {label} draft without a Markov head"
    elif block.markov_head not in rules.markov_heads:
        yield "markov_head_type", f"{block.markov_head!r}: vLLM has the vanilla head alone"


def _window_faults(draft: BlockDraft, rules: BlockRules) -> Iterator[tuple[str, str]]:
    if draft.shape.windows and not draft.block.causal_windows and not rules.whole_windows:
        yield (
            "sliding_window",
            (
                f"of {draft.shape.sliding_window}, in layers that read their whole block; with a window {rules.reader} "
                "reads a block up to the slot alone, as draft.sliding_window_non_causal: false trains it"
            ),
        )


def causal_flag(shape: DraftShape, block: BlockShape) -> bool | None:
    """Return the one value of causality that vLLM takes for all layers, None if layers differ in it.

    Without a value, vLLM takes layers with a window for causal and the others for not.
    """
    if shape.full_attention_layers and block.causal_windows:
        return None
    return bool(shape.windows) and block.causal_windows


def native_fields(draft: BlockDraft) -> dict[str, Any]:
    """Return the fields of a config as z-lab and DeepSpec publish it, which vLLM and SGLang read."""
    shape, block, boundaries = draft.shape, draft.block, draft.boundaries or ()
    causal = causal_flag(shape, block)
    common = {"mask_token_id": draft.mask_token_id, TARGET_LAYER_IDS: list(to_outputs(boundaries))}
    fields: dict[str, Any] = {"block_size": block.block_size, "draft_vocab_size": shape.draft_vocab_size}
    if draft.target_depth is not None:
        fields["num_target_layers"] = draft.target_depth
    if shape.has_own_width:
        fields["target_hidden_size"] = shape.target_hidden_size
    if shape.family.anchor_slots:  # DFlash
        nested = common if causal is None else {**common, "causal": causal}
        return {**fields, DFLASH_CONFIG: nested, BOUNDARY_IDS: list(boundaries)}
    if shape.windows and causal is False:
        fields[DFLASH_CONFIG] = {"causal": False}
    return {**fields, **common, **_head_fields(block), BOUNDARY_IDS: list(boundaries)}


def speculators_fields(draft: BlockDraft) -> dict[str, Any]:
    """Return the fields of a speculators config beside the layers' and the speculators block.

    vLLM takes `sliding_window_non_causal: false` for causality of every layer, so without windows it is true.
    """
    shape, block = draft.shape, draft.block
    return {
        "draft_vocab_size": shape.draft_vocab_size,
        "block_size": block.block_size,
        SPECULATORS_IDS: list(draft.boundaries or ()),
        "mask_token_id": draft.mask_token_id,
        "sample_from_anchor": block.sample_from_anchor,
        "sliding_window_non_causal": not (shape.windows and block.causal_windows),
        **({} if shape.family.anchor_slots else _head_fields(block)),
    }


def _head_fields(block: BlockShape) -> dict[str, Any]:
    return {
        "sample_from_anchor": block.sample_from_anchor,
        "markov_rank": block.markov_rank,
        "markov_head_type": block.markov_head,
        "enable_confidence_head": block.confidence_head,
        "confidence_head_with_markov": block.confidence_reads_markov,
    }
