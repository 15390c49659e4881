"""A layer of a block draft: queries from the block alone, keys and values from the context and the block."""

from typing import Any, Protocol

import torch
from torch import nn

from eaglepipe.eagle.layers.blocks import Eagle3LlamaMLP, Eagle3LlamaRMSNorm, LlamaAttentionBlock
from eaglepipe.eagle.layers.rope import Rotary, apply_rotary


class BlockAttention(Protocol):
    """The attention of C context slots and N blocks of W slots, under the visibility of one layer."""

    rows: torch.Tensor | None
    """int64 [R], the block slots, of N·W, whose outputs are asked for; None: all."""

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """Queries [1, h, R, d], keys and values [1, kv, C + N·W, d], context first -> [1, h, R, d]."""
        ...


class DFlashAttention(LlamaAttentionBlock):
    """Grouped-query attention whose query and key heads are normed."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, config.hidden_size)
        self.q_norm = Eagle3LlamaRMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = Eagle3LlamaRMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self,
        states: torch.Tensor,
        context: torch.Tensor,
        rotary: Rotary,
        context_rotary: Rotary,
        attention: BlockAttention,
    ) -> torch.Tensor:
        """States [1, N·W, H] of blocks, context [1, C, H] and their cos, sin [1, 1, ..., R] -> [1, R, H]."""
        sources = ((context, context_rotary), (states, rotary))
        keys = [apply_rotary(self._keys(source), *tables) for source, tables in sources]
        values = [self._heads(self.v_proj(source)) for source, _ in sources]
        if attention.rows is not None:
            states = states[:, attention.rows]
            rotary = (rotary[0][:, :, attention.rows], rotary[1][:, :, attention.rows])
        queries = apply_rotary(self._queries(states), *rotary)
        return self._project_output(attention(queries, torch.cat(keys, 2), torch.cat(values, 2), self.scale))


class DFlashDecoderLayer(nn.Module):
    """A pre-norm Qwen3 layer; the context enters its keys and values as it is, without `input_layernorm`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input_layernorm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DFlashAttention(config)
        self.mlp = Eagle3LlamaMLP(config)

    def forward(
        self,
        states: torch.Tensor,
        context: torch.Tensor,
        rotary: Rotary,
        context_rotary: Rotary,
        attention: BlockAttention,
    ) -> torch.Tensor:
        """As `DFlashAttention.forward`, with norms, residuals and MLP."""
        attended = self.self_attn(self.input_layernorm(states), context, rotary, context_rotary, attention)
        states = (states if attention.rows is None else states[:, attention.rows]) + attended
        output: torch.Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output
