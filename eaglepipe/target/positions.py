"""The number of positions that a target was made for: tokens past them have states that it never has in use."""

import math
from typing import Any, TypeGuard

from transformers import PretrainedConfig


def max_positions(config: PretrainedConfig) -> int | None:
    """Return how many tokens the target may read at once; None if its architecture has no limit.

    Scaled ropes reach `factor` times their original range, whichever of the two `max_position_embeddings` holds.
    A sliding window is no limit.
    """
    counts = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    declared = next((count for count in counts if _is_count(count)), None)
    if declared is None:
        return None
    if any(getattr(holder, "alibi", False) for holder in (config, getattr(config, "attn_config", None))):
        return None
    return max([declared, *(_scaled(group, declared) for group in _rope_groups(config))])


def _rope_groups(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Return the rope parameters; of ropes by layer type, those that name the range that they scale."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict):
        return []
    by_type = [group for group in parameters.values() if isinstance(group, dict)]
    return [group for group in by_type if group.get("original_max_position_embeddings")] if by_type else [parameters]


def _scaled(rope: dict[str, Any], declared: int) -> int:
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    if not _is_finite(factor) or factor <= 1:
        return declared
    return int((original if _is_finite(original) and original > 0 else declared) * factor)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_finite(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and math.isfinite(value)
