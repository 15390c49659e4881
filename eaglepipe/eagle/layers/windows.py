"""Sliding windows of attention: a layer with a window reads the newest `window` slots alone, its own included.

In training a window counts slots, as in speculators: depth k of slot t reads step 0's slots above t - window. Engines
count positions, so that the same guess reads k slots fewer at the far end; decoding here does as they do.
"""

from typing import Any

import torch

from eaglepipe.eagle.completed_config import is_derived

SLIDING = "sliding_attention"
FULL = "full_attention"


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """Return the window of each layer of a draft, None for full attention; a target's own windows are none of it."""
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    if not window or not is_derived(config):
        return (None,) * config.num_hidden_layers
    slides = (index < len(kinds) and kinds[index] == SLIDING for index in range(config.num_hidden_layers))
    return tuple(int(window) if slide else None for slide in slides)


def in_window(mask: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return the part of bool [..., T, T], True where a slot may read another, that lies in the window."""
    if window is None or window >= mask.shape[-1]:
        return mask
    return mask & ~torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril(-window)
