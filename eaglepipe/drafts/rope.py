"""Rotary parameters of two drafts compared, in whatever spelling they are stored."""

from collections.abc import Iterator, Mapping
from typing import Any

UNKNOWN_ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
"""The rotary parameters that readers take if a config names none."""


def rope_scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return what changes positions apart from theta, {} if nothing does: spellings of the same rope are equal."""
    whole = {**rope, "rope_type": rope.get("rope_type", "default")}
    if whole.get("partial_rotary_factor", 1.0) == 1.0:
        whole.pop("partial_rotary_factor", None)
    if whole["rope_type"] == "default":
        whole = {name: whole[name] for name in ("partial_rotary_factor",) if name in whole}
    return {name: whole[name] for name in sorted(whole) if name != "rope_theta" and whole[name] is not None}


def rope_differences(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield a text for each way in which a published draft's positions differ from this draft's, the target's."""
    theirs, ours = (UNKNOWN_ROPE if rope is None else rope for rope in (theirs, ours))
    if theirs["rope_theta"] != ours["rope_theta"]:
        yield f"rope theta {theirs['rope_theta']:g}; this draft has the target's, {ours['rope_theta']:g}"
    one, other = map(rope_scaling, (theirs, ours))
    if one != other:
        yield f"rope scaling {describe_scaling(one)}; this draft has the target's, {describe_scaling(other)}"


def describe_scaling(scaling: Mapping[str, Any]) -> str:
    """Return the scaling of `rope_scaling` in words."""
    kind = scaling.get("rope_type", "default")
    rest = ", ".join(f"{name} {value}" for name, value in scaling.items() if name != "rope_type")
    return "none" if not scaling else f"{kind} ({rest})" if rest else str(kind)
