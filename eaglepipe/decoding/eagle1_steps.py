"""`DraftSteps` of EAGLE-1/2 drafts: features in, features out, judged by the target's own head.

Shapes: B rows, n tokens, S places, H the target's hidden size, V vocabulary.
"""

from typing import Any

import torch

from eaglepipe.cache.head import HeadSpec
from eaglepipe.decoding.draft_steps import CachedSteps, cached_attention
from eaglepipe.decoding.drafters import Verified
from eaglepipe.errors import EaglepipeError


class Eagle1Steps(CachedSteps):
    """Steps of a `LlamaEagleDraftModel`; the head's rows are those that the cache keeps."""

    name = "EAGLE-1"
    target_ids = None

    def __init__(self, draft: Any, tensors: dict[str, torch.Tensor], head: HeadSpec) -> None:
        """Raises EaglepipeError where the cache does not hold the target's whole lm_head."""
        super().__init__(len(draft.layers), draft.device)
        if "lm_head_full.weight" not in tensors:
            raise EaglepipeError(
                "the cache does not hold all rows of the target's lm_head, by which an EAGLE-1 draft's states become "
                "tokens; precompute one with cache.full_head=true"
            )
        self.draft, self._head = draft, head
        self._weight = tensors["lm_head_full.weight"].to(draft.device, torch.float32)
        bias = tensors.get("lm_head_full.bias")
        self._bias = None if bias is None else bias.to(draft.device, torch.float32)
        self.vocab_size = len(self._weight)

    def _true_states(self, verified: Verified) -> torch.Tensor:
        if verified.last_hidden is None:
            raise EaglepipeError(
                "the cache does not hold the last hidden state of every token, so an EAGLE-1 draft cannot be replayed "
                "from it; precompute one with cache.last_hidden=all"
            )
        return verified.last_hidden

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._head.apply(torch.nn.functional.linear(states.float(), self._weight, self._bias))

    def _forward(
        self,
        tokens: torch.Tensor,
        states: torch.Tensor,
        *,
        positions: torch.Tensor,
        places: torch.Tensor,
        readable: torch.Tensor,
    ) -> torch.Tensor:
        embeds = self.draft.embed_tokens(tokens)
        states = self.draft.fc(torch.cat((embeds, states.to(embeds.dtype)), dim=-1))
        for layer, cache in zip(self.draft.layers, self._layers, strict=True):
            cos, sin = layer.self_attn.rotary_emb(positions, longest=positions.max() + 1)
            rotary, inputs = (cos[:, :, None], sin[:, :, None]), layer.input_layernorm(states)
            attended = cached_attention(layer.self_attn, inputs, rotary, cache, places=places, readable=readable)
            states = states + attended
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        return states
