"""Attention masks for trees of tokens, one for each kind of layer a target has.

Shapes: B rows, n queries, S keys.
"""

from dataclasses import dataclass

import torch
from transformers import DynamicCache, PretrainedConfig

SLIDING = "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class LayerKinds:
    """How far each kind of layer sees, by the name that the model's forward takes a mask under."""

    windows: dict[str, int | None]  # None: everything
    named: bool  # whether the forward takes one mask a kind, or one for all

    @property
    def longest_exact(self) -> int | None:
        """Tokens up to which a kind that is not known here (chunked attention) sees everything, too."""
        limits = [window for kind, window in self.windows.items() if window is not None and kind != SLIDING]
        return min(limits, default=None)

    @property
    def sliding_window(self) -> int | None:
        return self.windows.get(SLIDING)


def layer_kinds(config: PretrainedConfig) -> LayerKinds:
    """Return the kinds of a text config's layers."""
    declared = getattr(config, "layer_types", None)
    layers = DynamicCache(config=config).layers
    widths = [getattr(layer, "sliding_window", None) for layer in layers]
    names = (
        declared
        if declared and len(declared) == len(layers)
        else [SLIDING if width else "full_attention" for width in widths]
    )
    windows = {str(name): None if width is None else int(width) for name, width in zip(names, widths, strict=True)}
    return LayerKinds(windows=windows, named=bool(declared) and any(width is not None for width in windows.values()))


def additive_mask(
    visible: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, kinds: LayerKinds, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the mask that is added to the scores, [B, 1, n, S], for all layers or by kind.

    Args:
        visible: bool [B, n, S], True if order and tree let a query read a key.
        queries, keys: int64 [B, n] and [B, S], their positions.
    """
    distance, zeros = queries[:, :, None] - keys[:, None], torch.zeros_like(visible, dtype=dtype)
    masks = {}
    for kind, window in kinds.windows.items():
        seen = visible & (distance < window) if kind == SLIDING and window is not None else visible
        masks[kind] = zeros.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    return masks if kinds.named else next(iter(masks.values()))
