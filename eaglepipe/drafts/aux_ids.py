"""Aux layer ids: boundaries in this project, boundaries or layer outputs in engines' configs.

Boundary b is `output_hidden_states[b]`, the output of layer b-1. vLLM and speculators read ids as boundaries, SGLang
as layer outputs; a wrong layer never errors, acceptance just collapses.
"""

from typing import Literal

from eaglepipe.drafts.reading import Ids
from eaglepipe.families import default_boundaries


def to_outputs(boundaries: Ids) -> Ids:
    """Return the indices of the layers whose outputs the boundaries are."""
    return tuple(boundary - 1 for boundary in boundaries)


def to_boundaries(outputs: Ids) -> Ids:
    """Return the boundaries of layer outputs."""
    return tuple(output + 1 for output in outputs)


def sglang_ids(boundaries: Ids, *, depth: int | None, model_type: str | None) -> Ids:
    """Return the ids from which SGLang gets these boundaries; for gpt-oss it adds no 1 if the last id is the depth."""
    return boundaries if model_type == "gpt_oss" and depth in boundaries else to_outputs(boundaries)


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
