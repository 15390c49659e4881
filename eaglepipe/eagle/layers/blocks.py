"""Building blocks of the Llama draft: norm, SwiGLU, attention over lists of earlier steps' keys and values."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from eaglepipe.eagle.completed_config import completed_config, has_option
from eaglepipe.eagle.layers.rope import Eagle3LlamaRotaryEmbedding, Rotary, apply_rotary
from eaglepipe.eagle.peagle_draft import (
    _after_attention,
    _PeagleAttentionMixin,
    _PeagleDecoderLayerMixin,
    _PeagleVanillaLayerMixin,
)
from eaglepipe.eagle.unroll.attention.plain import ttt_attention


class Eagle3LlamaRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same shape, of the wider dtype of input and weight."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden_states.dtype)


class Eagle3LlamaMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        config = completed_config(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        return self.down_proj(F.silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


def norm_heads(norm: nn.Module, heads: torch.Tensor) -> torch.Tensor:
    """Apply `q_norm` or `k_norm` to heads [..., d], whose dtype stays, also where the weights have a wider one."""
    normed: torch.Tensor = norm(heads)
    return normed.to(heads.dtype)


class LlamaAttentionBlock(nn.Module):
    """The projections of a grouped-query attention over `input_size`, its norms of heads, and its rotary embedding."""

    def __init__(self, config: Any, input_size: int) -> None:
        super().__init__()
        config = completed_config(config)
        self.num_heads: int = config.num_attention_heads
        self.num_key_value_heads: int = config.num_key_value_heads
        self.head_dim: int = config.head_dim
        self.scale = self.head_dim**-0.5
        query_size, key_size = self.num_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(input_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(input_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(input_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        normed = has_option(config, "qk_norm")
        self.q_norm = Eagle3LlamaRMSNorm(self.head_dim, config.rms_norm_eps) if normed else nn.Identity()
        self.k_norm = Eagle3LlamaRMSNorm(self.head_dim, config.rms_norm_eps) if normed else nn.Identity()
        self.rotary_emb = Eagle3LlamaRotaryEmbedding(config)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """[B, T, heads·d] -> [B, heads, T, d]."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _queries(self, states: torch.Tensor) -> torch.Tensor:
        """[B, T, input size] -> [B, h, T, d], before the rotary embedding."""
        return norm_heads(self.q_norm, self._heads(self.q_proj(states)))

    def _keys(self, states: torch.Tensor) -> torch.Tensor:
        """[B, T, input size] -> [B, kv, T, d], before the rotary embedding."""
        return norm_heads(self.k_norm, self._heads(self.k_proj(states)))

    def _project_output(self, attended: torch.Tensor) -> torch.Tensor:
        """[B, h, T, d] -> [B, T, H]."""
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class Eagle3LlamaAttention(_PeagleAttentionMixin, LlamaAttentionBlock):
    """Grouped-query attention of one TTT step; `input_size` is 2H in the fused layer and H in deeper ones."""

    def forward(
        self,
        combined_states: torch.Tensor,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        mask: torch.Tensor,
        rotary: Rotary,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend to the keys and values of earlier steps and of this one.

        Args:
            combined_states: [B, T, input_size].
            keys, values: one tensor [B, kv, T, d] for each earlier step; left as they are.
            mask: bool [B, 1, T, T] over step 0's keys.
            rotary: cos, sin [B, 1, T, R] at this step's positions.

        Returns: output [B, T, H], and this step's key and value [B, kv, T, d].
        """
        query = apply_rotary(self._queries(combined_states), *rotary)
        key = apply_rotary(self._keys(combined_states), *rotary)
        value = self._heads(self.v_proj(combined_states))
        attended = ttt_attention(query, [*keys, key], [*values, value], mask, self.scale)
        return self._project_output(attended), key, value


class Eagle3LlamaDecoderLayer(_PeagleDecoderLayerMixin, nn.Module):
    """The fused first layer: attends over [norm(embedding) ; norm(carried state)], residual from the carried state.

    With `config.norm_before_residual` the residual is the normed state.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.norm_before_residual = has_option(config, "norm_before_residual")
        self.hidden_norm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Eagle3LlamaAttention(config, 2 * config.hidden_size)
        self.mlp = Eagle3LlamaMLP(config)

    def forward(  # noqa: PLR0917 - the established signature
        self,
        input_embeds: torch.Tensor,
        hidden_states: torch.Tensor,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        mask: torch.Tensor,
        rotary: Rotary,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings and carried state [B, T, H] -> new state [B, T, H], key, value [B, kv, T, d]."""
        embeds, states = self.input_layernorm(input_embeds), self.hidden_norm(hidden_states)
        combined = torch.cat((embeds.to(states.dtype), states), dim=-1)
        attended, key, value = self.self_attn(combined, keys, values, mask, rotary)
        return _after_attention(self, states if self.norm_before_residual else hidden_states, attended), key, value


class Eagle3LlamaPeagleLayer(_PeagleVanillaLayerMixin, nn.Module):
    """A plain pre-norm Llama layer over H, for the layers after the fused one."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input_layernorm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Eagle3LlamaAttention(config, config.hidden_size)
        self.mlp = Eagle3LlamaMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        keys: Sequence[torch.Tensor],
        values: Sequence[torch.Tensor],
        mask: torch.Tensor,
        rotary: Rotary,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """State [B, T, H] -> new state [B, T, H], key, value [B, kv, T, d]."""
        attended, key, value = self.self_attn(self.input_layernorm(hidden_states), keys, values, mask, rotary)
        return _after_attention(self, hidden_states, attended), key, value
