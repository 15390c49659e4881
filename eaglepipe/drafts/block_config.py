"""Reads the fields that the config.json of a block draft has of its own, in any of their spellings.

z-lab's DFlash nests them in `dflash_config` and counts layer outputs from 0; DSpark has them at the top level;
speculators has boundaries in `aux_hidden_state_layer_ids`; a draft of our own has `eagle_aux_hidden_state_layer_ids`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from eaglepipe.drafts.block_shape import CONFIDENCE_TENSOR, MARKOV_HEADS, MARKOV_TENSOR, BlockShape
from eaglepipe.errors import DraftError
from eaglepipe.families import FAMILIES, Family

DFLASH_CONFIG, TARGET_LAYER_IDS, SPECULATORS_IDS = "dflash_config", "target_layer_ids", "aux_hidden_state_layer_ids"
BOUNDARY_IDS = "eagle_aux_hidden_state_layer_ids"
FOREIGN = ("DFlash2DraftModel", "LiLiCorrDraftModel", "Gemma4DSparkModel", "Qwen3OmniDSparkModel", "K3DSparkModel")
"""Architectures of drafts that are built on these and have modules that nothing here has."""
FOREIGN_FIELDS = ("conv_kernel_size", "selector_rank", "projector_type", "attention_sink_bias", "attention_value_scale")
"""Fields of `dflash_config` that name such a module."""


def declared_block_family(config: Mapping[str, Any]) -> Family | None:
    """Return the family that a config names, None if it names none of those that guess blocks.

    Raises:
        DraftError: it names a kind of block draft that is not known here.
    """
    architectures = [str(name) for name in config.get("architectures") or ()]
    nested = dflash_config(config)
    strange = [name for name in architectures if name in FOREIGN]
    strange += [f"{DFLASH_CONFIG}.{name}" for name in FOREIGN_FIELDS if nested.get(name)]
    strange += [str(name) for name in (config.get("speculators_model_type"),) if name == "dflash2"]
    if strange:
        raise DraftError(f"{', '.join(strange)}: a kind of block draft that is not known here; DFlash and DSpark are")
    kinds = [family for family in FAMILIES.values() if family.drafts_blocks]
    by_type = {family.speculators_type: family for family in kinds}
    if (declared := by_type.get(config.get("speculators_model_type"))) is not None:
        return declared
    named = (f for f in kinds if not {*f.engine_architectures.values()}.isdisjoint(architectures))
    return next(named, None) or next((family for family in kinds if nested), None)


def dflash_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the nested `dflash_config`, empty if there is none."""
    nested = config.get(DFLASH_CONFIG)
    return nested if isinstance(nested, Mapping) else {}


def read_block_shape(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    family: Family,
    windows: tuple[int | None, ...],
) -> BlockShape:
    """Read what a block draft has of its own; tensors, by canonical name, decide the rank of its Markov head."""
    head = str(config.get("markov_head_type") or "vanilla").lower()
    rank = tensors[MARKOV_TENSOR].shape[-1] if MARKOV_TENSOR in tensors else int(config.get("markov_rank") or 0)
    has_confidence = config.get("enable_confidence_head", CONFIDENCE_TENSOR in tensors)
    return BlockShape(
        block_size=read_block_size(config),
        sample_from_anchor=bool(_own(config, "sample_from_anchor", family.anchor_slots == 0)),
        causal_windows=bool(windows) and reads_windows_causally(config),
        markov_rank=rank,
        markov_head=head if head in MARKOV_HEADS else "vanilla",
        confidence_head=bool(has_confidence),
        confidence_reads_markov=bool(config.get("confidence_head_with_markov", rank > 0)) and rank > 0,
    )


def read_block_size(config: Mapping[str, Any]) -> int | None:
    """Read the number of slots of a block."""
    value = _own(config, "block_size", None)
    return value if isinstance(value, int) else None


def read_block_mask(config: Mapping[str, Any]) -> int | None:
    """Read the token id in the slots to guess."""
    value = _own(config, "mask_token_id", None)
    return value if isinstance(value, int) else None


def _own(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a field from where engines look first: `dflash_config`, then the top level."""
    value = dflash_config(config).get(name)
    if value is None:
        value = config.get(name)
    return default if value is None else value


def read_boundaries(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Read the target's boundaries that a draft reads, under any name; None if it names none."""
    for name in (BOUNDARY_IDS, SPECULATORS_IDS):
        if ids := whole_numbers(config.get(name)):
            return ids
    outputs = read_outputs(config)
    return outputs and tuple(output + 1 for output in outputs)


def read_outputs(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Read the layers whose outputs are read, as `target_layer_ids` counts them."""
    return whole_numbers(_own(config, TARGET_LAYER_IDS, None))


def whole_numbers(value: Any) -> tuple[int, ...] | None:
    """Return a list of whole numbers as a tuple, None for anything else or an empty one."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return tuple(value) if is_list and all(type(item) is int for item in value) else None


def reads_windows_causally(config: Mapping[str, Any]) -> bool:
    """Return whether layers with a window read a block up to their own slot alone, as engines do by default."""
    for level, name in ((config, "is_causal"), (dflash_config(config), "causal")):
        if level.get(name) is not None:
            return bool(level[name])
    if config.get("sliding_window_non_causal") is not None:
        return not config["sliding_window_non_causal"]
    return not dflash_config(config).get("use_swa")


def block_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Yield a text for each way in which a published draft's blocks differ from this one's, which weights survive."""
    for read, words in ((read_block_size, "blocks of {}"), (read_block_mask, "mask token {}")):
        one, other = read(theirs), read(ours)
        if one is not None and other is not None and one != other:
            yield f"{words.format(one)}; this draft has {other}"
