"""`DraftSteps` of EAGLE-1 and EAGLE-2 drafts, whose states are features that the target's own head reads.

Shapes: B rows, n tokens, H the target's hidden size, V vocabulary.
"""

from typing import Any, Self

import torch

from eaglepipe.decoding.draft_cache import Placement, cached_attention
from eaglepipe.decoding.draft_steps import SequentialSteps
from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.errors import EaglepipeError
from eaglepipe.target_head import HeadSpec, TargetHead
from eaglepipe.training.data.batch import TrainingSource


class Eagle1Steps(SequentialSteps):
    """Steps of a `LlamaEagleDraftModel`, with the rows of the target's head that the cache keeps."""

    name = "EAGLE-1"
    target_ids = None

    def __init__(self, draft: Any, tensors: dict[str, torch.Tensor], head: HeadSpec) -> None:
        """Raises EaglepipeError if the cache does not hold the target's whole lm_head."""
        super().__init__([None] * len(draft.layers), draft.device)
        if "lm_head_full.weight" not in tensors:
            raise EaglepipeError(
                "the cache does not hold all rows of the target's lm_head, by which an EAGLE-1 draft's states become "
                "tokens; precompute one with cache.full_head=true"
            )
        self.draft = draft
        self._head = TargetHead.from_tensors(tensors, head, full=True).to(draft.device, torch.float32)
        self.vocab_size = len(self._head.weight)

    @classmethod
    def from_source(cls, draft: Any, source: TrainingSource) -> Self:
        """Return the steps of a draft that was trained from `source`."""
        return cls(draft, source.start_tensors(), source.head)

    def _slot_states(self, verified: VerifiedSlots) -> torch.Tensor:
        if verified.last_hidden is None:
            raise EaglepipeError(
                "the cache does not hold the last hidden state of every token, so an EAGLE-1 draft cannot be replayed "
                "from it; precompute one with cache.last_hidden=all"
            )
        return verified.last_hidden

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._head.logits(states)

    def _forward(self, tokens: torch.Tensor, states: torch.Tensor, placement: Placement) -> torch.Tensor:
        embeds = self.draft.embed_tokens(tokens)
        states = self.draft.fc(torch.cat((embeds, states.to(embeds.dtype)), dim=-1))
        for layer, cache in zip(self.draft.layers, self._layers, strict=True):
            rotary = layer.self_attn.rotary_emb(placement.position_ids)
            inputs = layer.input_layernorm(states)
            states = states + cached_attention(layer.self_attn, inputs, rotary, cache, placement)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        output: torch.Tensor = self.draft.norm(states)
        return output
