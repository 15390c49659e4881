"""Aux layer ids: boundaries in this project, boundaries or layer outputs in engines' configs.

Boundary b is `output_hidden_states[b]`, the output of layer b-1. vLLM and speculators read ids as boundaries, SGLang
as layer outputs; a wrong layer never errors, acceptance just collapses.
"""

from collections.abc import Mapping
from typing import Any, Literal

from eaglepipe.drafts.reading import Ids, eagle_config, is_speculators, read_aux
from eaglepipe.families import default_boundaries

_MODELOPT = frozenset(
    {
        "use_input_layernorm_in_first_layer", "use_last_layernorm", "use_mtp_layernorm", "next_layer_regular",
        "parallel_draft_step",
    }
)  # fmt: skip
_DEEPSEEK = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2")
_WHOLE_CONFIG = frozenset({"use_cache", "initializer_range", "attention_dropout", "pretraining_tp"})
_OTHERS = frozenset({"norm_before_residual", "norm_before_fc", "num_aux_layers"})
"""Fields of vLLM's and of speculators' drafts, which no config of SpecForge has."""


def to_outputs(boundaries: Ids) -> Ids:
    """Return the indices of the layers whose outputs the boundaries are."""
    return tuple(boundary - 1 for boundary in boundaries)


def to_boundaries(outputs: Ids) -> Ids:
    """Return the boundaries of layer outputs."""
    return tuple(output + 1 for output in outputs)


def sglang_ids(boundaries: Ids, *, depth: int | None, model_type: str | None) -> Ids | None:
    """Return the ids from which SGLang captures these boundaries, None if there are none.

    It adds 1 to each; but not for gpt-oss if the last id is the depth, nor for DeepSeek-V3 if the first id is not 1.
    """
    candidates = (to_outputs(boundaries), boundaries)
    captured = {ids: sglang_boundaries(ids, depth=depth, model_type=model_type) for ids in candidates}
    return next((ids for ids in candidates if captured[ids] == boundaries), None)


def sglang_boundaries(ids: Ids, *, depth: int | None, model_type: str | None) -> Ids:
    """Return the boundaries that SGLang captures for ids of a config."""
    is_as_written = (model_type == "gpt_oss" and depth in ids) or (model_type in _DEEPSEEK and ids[0] != 1)
    return ids if is_as_written else to_boundaries(ids)


def sglang_fault(boundaries: Ids, *, depth: int | None, model_type: str | None) -> str | None:
    """Return why SGLang cannot capture these boundaries of a target, None if it can."""
    if depth is not None and depth in boundaries and model_type != "gpt_oss":
        return f"SGLang captures nothing at the final boundary {depth} of targets other than gpt-oss"
    if sglang_ids(boundaries, depth=depth, model_type=model_type) is None:
        return f"SGLang adds 1 to ids of {model_type} targets if the first is 1, so none stand for {list(boundaries)}"
    return None


def writer_of_outputs(config: Mapping[str, Any]) -> str | None:
    """Return the trainer that wrote ids into `eagle_config` alone, if it writes layer outputs; None: it is not known.

    NVIDIA ModelOpt describes its layers beside the ids. SpecForge saves a whole config of transformers, in the native
    format, and no field of another engine's.
    """
    nested = eagle_config(config)
    if "layer_ids" in nested:  # vLLM's own name, which holds boundaries
        return None
    if not _MODELOPT.isdisjoint(nested):
        return "NVIDIA ModelOpt"
    architectures = config.get("architectures") or ()
    is_native = not is_speculators(config) and any(str(name).endswith("ForCausalLMEagle3") for name in architectures)
    is_whole = len(_WHOLE_CONFIG & config.keys()) > 1
    return "SpecForge" if is_native and is_whole and config.keys().isdisjoint(_OTHERS) else None


def boundaries_of(config: Mapping[str, Any], depth: int | None) -> Ids | None:
    """Return the boundaries that ids in `eagle_config` alone stand for; None if their meaning is not known."""
    _, nested = read_aux(config)
    if nested is None:
        return None
    if writer_of_outputs(config) is not None and likely_convention(nested, depth) != "boundaries":
        return to_boundaries(nested)
    return None


def likely_convention(ids: Ids, depth: int | None) -> Literal["boundaries", "outputs"] | None:
    """Guess the meaning of ids that no second spelling confirms: they leave the range, or are a known default.

    Without the target's depth, a default is recognised by the depth that it would belong to.
    """
    if 0 in ids:
        return "outputs"
    if depth is not None and depth in ids:
        return "boundaries"
    if len(ids) != 3:
        return None
    if ids == default_boundaries(ids[2] + 3 if depth is None else depth):
        return "boundaries"
    if ids == to_outputs(default_boundaries(ids[2] + 4 if depth is None else depth)):
        return "outputs"
    return None
