"""The EAGLE-1/2 Llama draft: from a token and the target's feature before it, the feature that comes next.

Built as engines serve it: no lm_head but the target's, and an input norm in the first layer, a final norm and a bias of
fc only if the config asks for them. State names are the interchange names: `embed_tokens.weight`, `fc.weight`,
`layers.{i}.*`, `norm.weight`.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, PreTrainedModel

from eaglepipe.eagle.completed_config import completed_eagle1_config
from eaglepipe.eagle.layers.blocks import Eagle3LlamaRMSNorm
from eaglepipe.eagle.layers.blocks_v12 import (
    Chain,
    EagleLlamaAttention,
    EagleLlamaDecoderLayer,
    EagleLlamaMLP,
    _build_causal_mask,
)
from eaglepipe.eagle.layers.target_rows import TargetEmbeddingsMixin
from eaglepipe.eagle.unroll.attention.plain import causal_mask, slot_positions

__all__ = [
    "EagleLlamaAttention",
    "EagleLlamaDecoderLayer",
    "EagleLlamaMLP",
    "LlamaEagleDraftModel",
    "_build_causal_mask",
]


class LlamaEagleDraftModel(TargetEmbeddingsMixin, PreTrainedModel):
    """Llama-style dense draft that predicts next-step hidden states.

    Works with Llama, Phi-3, and Qwen3 dense configs: attention_bias, mlp_bias, head_dim, rope and rms_norm_eps are read
    from the config; `bias` (absent: False) gives fc one, `input_norm` and `final_norm` (absent: False) norm what the
    first layer attends to and the states that come out. H is the target's hidden size.
    """

    config_class = LlamaConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ("EagleLlamaDecoderLayer",)

    def __init__(self, config: Any) -> None:
        config = completed_eagle1_config(config)
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=getattr(config, "bias", False))
        self.layers = nn.ModuleList(
            EagleLlamaDecoderLayer(config, input_norm=index > 0 or getattr(config, "input_norm", False))
            for index in range(config.num_hidden_layers)
        )
        is_normed = getattr(config, "final_norm", False)
        self.norm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps) if is_normed else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        target_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        seq_lens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the feature after each slot's token.

        Args:
            input_ids: int64 [B, T]; slot t holds the token after the one whose feature it holds.
            target_hidden_states: [B, T, H], last hidden states after the target's final norm.
            attention_mask: [B, T], 1 for real tokens, right padded.
            position_ids: int64 [B, T]; default from `seq_lens`, else 0..T-1.
            seq_lens: int64 [B, max_docs], lengths of packed documents, each of which reads itself alone.

        Returns: [B, T, H].
        """
        batch, num_slots = input_ids.shape
        readable = causal_mask(attention_mask, seq_lens, batch, num_slots, input_ids.device)
        positions = slot_positions(input_ids, position_ids, seq_lens)
        hidden_states = self._fused(input_ids, target_hidden_states)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden_states = checkpoint(layer, hidden_states, readable, positions, use_reentrant=False)
            else:
                hidden_states = layer(hidden_states, readable, positions)
        output: torch.Tensor = self.norm(hidden_states)
        return output

    def forward_chain(
        self,
        input_ids: torch.Tensor,
        features: torch.Tensor,
        readable: torch.Tensor,
        position_ids: torch.Tensor,
        chains: list[Chain],
    ) -> torch.Tensor:
        """Draft depth k of a chain in every slot; at depth 0 the same as `forward`.

        Args:
            input_ids: int64 [B, T], of this depth.
            features: [B, T, H], the target's at depth 0, then what the depth before returned.
            readable: bool [B, 1, T, T] over depth 0.
            position_ids: int64 [B, T] of depth 0.
            chains: one list a layer, empty at depth 0; this depth is appended.
        """
        hidden_states = self._fused(input_ids, features)
        for layer, chain in zip(self.layers, chains, strict=True):
            assert isinstance(layer, EagleLlamaDecoderLayer)
            hidden_states = layer.forward_chain(hidden_states, readable, position_ids, chain)
        output: torch.Tensor = self.norm(hidden_states)
        return output

    def _fused(self, input_ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        embeds = self.embed_tokens(input_ids)
        return self.fc(torch.cat((embeds, features.to(embeds.dtype)), dim=-1))
