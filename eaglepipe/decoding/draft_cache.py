"""Key-value cache of a draft layer: verified slots, and behind them guesses, which are always overwritten.

Shapes: B rows, S cache entries, n new tokens, kv key-value heads, d head size, H draft hidden.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from eaglepipe.eagle.layers.rope import Rotary, apply_rotary

_SPARE_ENTRIES = 64


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Position of each of n new tokens, the cache entry that it writes, and the entries that it attends to."""

    position_ids: torch.Tensor  # int64 [B, n]
    cache_positions: torch.Tensor  # int64 [B, n]
    attention_mask: torch.Tensor  # bool [B, n, S], over the first S entries


class DraftCache:
    """Keys and values of one layer. Entry t of a row is its verified slot t; guesses lie behind the longest row.

    A layer with a window attends to entries less than `window` positions before a token alone or, with `looks_ahead`,
    on either side of it.
    """

    def __init__(self, window: int | None = None, *, looks_ahead: bool = False) -> None:
        self._window, self._looks_ahead = window, looks_ahead
        self._entries: torch.Tensor | None = None  # [2, B, S, kv, d], zero until written
        self._positions: torch.Tensor | None = None  # int64 [B, S], of the entries

    def write(self, key: torch.Tensor, value: torch.Tensor, placement: Placement) -> None:
        """Store keys and values [B, n, kv, d] of new tokens."""
        entries, positions = self._entries, self._positions
        length = int(placement.cache_positions.max()) + 1
        if entries is None or positions is None or entries.shape[2] < length:
            size = length + length // 2 + _SPARE_ENTRIES
            entries = key.new_zeros(2, len(key), size, *key.shape[2:])
            positions = placement.position_ids.new_zeros(len(key), size)
            if self._entries is not None and self._positions is not None:
                entries[:, :, : self._entries.shape[2]] = self._entries
                positions[:, : self._positions.shape[1]] = self._positions
            self._entries, self._positions = entries, positions
        rows = torch.arange(len(key), device=key.device)[:, None]
        entries[0][rows, placement.cache_positions] = key
        entries[1][rows, placement.cache_positions] = value
        positions[rows, placement.cache_positions] = placement.position_ids

    def visible(self, placement: Placement) -> torch.Tensor:
        """Return bool [B, n, S], the entries that each new token attends to in this layer."""
        mask = placement.attention_mask
        if self._window is None:
            return mask
        assert self._positions is not None
        distance = placement.position_ids[:, :, None] - self._positions[:, None, : mask.shape[-1]]
        nearest = 1 - self._window if self._looks_ahead else 0
        return mask & (distance >= nearest) & (distance < self._window)

    def read(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of the first `length` entries, [B, kv, length, d] each."""
        assert self._entries is not None
        key, value = self._entries[:, :, :length].transpose(2, 3)
        return key, value

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows, int64 [B']."""
        assert self._entries is not None and self._positions is not None
        self._entries, self._positions = self._entries[:, rows], self._positions[rows]


def cached_attention(
    attention: Any, inputs: torch.Tensor, rotary: Rotary, cache: DraftCache, placement: Placement
) -> torch.Tensor:
    """Write the keys and values of new tokens [B, n, input size] and return their attention output [B, n, H].

    `attention` is like an `Eagle3LlamaAttention`; `rotary` is cos and sin at the tokens' positions, [B, n, R] each.
    """
    heads, cos, sin = (-1, attention.head_dim), rotary[0][:, :, None], rotary[1][:, :, None]
    query = apply_rotary(attention.q_norm(attention.q_proj(inputs).unflatten(-1, heads)), cos, sin)
    cache_keys(attention, inputs, rotary, cache, placement)
    keys, values = cache.read(placement.attention_mask.shape[-1])
    groups = query.shape[2] // keys.shape[1]
    queries = query.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, kv, groups·n, d]
    mask = cache.visible(placement)[:, None].repeat(1, 1, groups, 1)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=attention.scale)
    merged = attended.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2)
    output: torch.Tensor = attention.o_proj(merged)
    return output


def cache_keys(attention: Any, inputs: torch.Tensor, rotary: Rotary, cache: DraftCache, placement: Placement) -> None:
    """Write the keys and values of new tokens, as `cached_attention` takes them; of `placement` no mask is read."""
    heads, cos, sin = (-1, attention.head_dim), rotary[0][:, :, None], rotary[1][:, :, None]
    key = apply_rotary(attention.k_norm(attention.k_proj(inputs).unflatten(-1, heads)), cos, sin)
    cache.write(key, attention.v_proj(inputs).unflatten(-1, heads), placement)
