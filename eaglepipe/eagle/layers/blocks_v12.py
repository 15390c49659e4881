"""Building blocks of the EAGLE-1/2 draft: attention, SwiGLU and a pre-norm decoder layer over H.

Shapes: B rows, T slots, H hidden, h query heads, kv key-value heads, d head size, k depth of a chain.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from eaglepipe.eagle.layers.blocks import Eagle3LlamaMLP, Eagle3LlamaRMSNorm, LlamaAttentionBlock
from eaglepipe.eagle.layers.rope import apply_rotary
from eaglepipe.eagle.peagle_draft import _after_attention
from eaglepipe.eagle.unroll.attention.plain import causal_mask, ttt_attention

Chain = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values [B, kv, T, d] of one layer at depths 0..k-1 of a chain."""


class EagleLlamaAttention(LlamaAttentionBlock):
    """Standard Llama-style self attention for the EAGLE-1/2 draft."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.hidden_size)

    def _repeat_kv(self, tensor: torch.Tensor) -> torch.Tensor:
        """Repeat each key-value head for its group of query heads: [B, kv, T, d] -> [B, h, T, d]."""
        return tensor.repeat_interleave(self.num_heads // self.num_key_value_heads, dim=1)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Attend within [B, T, H].

        Args:
            attention_mask: [B, 1, T, T], bool (True where readable) or added to the scores (`_build_causal_mask`).
            position_ids: int64 [B, T].
        """
        query, key, value = self._project(hidden_states, position_ids, None)
        attended = F.scaled_dot_product_attention(
            query, self._repeat_kv(key), self._repeat_kv(value), attn_mask=attention_mask, scale=self.scale
        )
        return self._project_output(attended)

    def forward_chain(
        self, hidden_states: torch.Tensor, readable: torch.Tensor, position_ids: torch.Tensor, chain: Chain
    ) -> torch.Tensor:
        """Attend at depth k of a drafted chain: to depth 0 causally, to later depths in the same slot only.

        Args:
            readable: bool [B, 1, T, T] over depth 0.
            position_ids: int64 [B, T] of depth 0.
            chain: depths 0..k-1; this depth is appended.
        """
        longest = position_ids.max() + 1
        query, key, value = self._project(hidden_states, position_ids + len(chain), longest)
        chain.append((key, value))
        keys, values = zip(*chain, strict=True)
        attended = ttt_attention(query, keys, values, readable, self.scale)
        return self._project_output(attended)

    def _project(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor, longest: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cos, sin = (table[:, None] for table in self.rotary_emb(position_ids, longest=longest))
        query, key, value = (self._heads(of(hidden_states)) for of in (self.q_proj, self.k_proj, self.v_proj))
        return apply_rotary(query, cos, sin), apply_rotary(key, cos, sin), value


class EagleLlamaMLP(Eagle3LlamaMLP):
    """Standard SwiGLU MLP used by the EAGLE-1/2 draft."""


class EagleLlamaDecoderLayer(nn.Module):
    """Single decoder layer for the minimal EAGLE-1/2 draft model.

    Args:
        input_norm: False for the first layer of a draft, which engines serve without one.
    """

    def __init__(self, config: Any, *, input_norm: bool = True) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = Eagle3LlamaRMSNorm(size, eps) if input_norm else nn.Identity()
        self.self_attn = EagleLlamaAttention(config)
        self.post_attention_layernorm = Eagle3LlamaRMSNorm(size, eps)
        self.mlp = EagleLlamaMLP(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]; arguments as `EagleLlamaAttention.forward` takes them."""
        attended = self.self_attn(self.input_layernorm(hidden_states), attention_mask, position_ids)
        return _after_attention(self, hidden_states, attended)

    def forward_chain(
        self, hidden_states: torch.Tensor, readable: torch.Tensor, position_ids: torch.Tensor, chain: Chain
    ) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]; arguments as `EagleLlamaAttention.forward_chain` takes them."""
        attended = self.self_attn.forward_chain(self.input_layernorm(hidden_states), readable, position_ids, chain)
        return _after_attention(self, hidden_states, attended)


def _build_causal_mask(attention_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Build a standard causal + padding mask for eager attention.

    Args:
        attention_mask: [B, T], 1 for real tokens.

    Returns: [B, 1, T, T] of `dtype`, added to the scores: 0 where slot t may read slot s (s <= t, no padding, or
        itself), the dtype's lowest number elsewhere.
    """
    batch, num_slots = attention_mask.shape
    readable = causal_mask(attention_mask, None, batch, num_slots, attention_mask.device)
    return torch.zeros_like(readable, dtype=dtype).masked_fill(~readable, torch.finfo(dtype).min)
