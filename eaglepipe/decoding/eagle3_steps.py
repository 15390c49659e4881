"""`DraftSteps` of EAGLE-3 drafts of all forms and architectures, and of P-EAGLE, which drafts all depths in one pass.

Shapes: B rows, m new slots, n guesses, K depths, H draft hidden, D draft vocabulary.
"""

from typing import Any, Self

import torch

from eaglepipe.decoding.draft_cache import Placement, cached_attention
from eaglepipe.decoding.draft_steps import ParallelSteps, SequentialSteps
from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.eagle.layers.windows import layer_windows
from eaglepipe.training.data.batch import TrainingSource


class Eagle3Steps(SequentialSteps):
    """Steps of a `LlamaEagle3DraftModel`."""

    name = "EAGLE-3"

    def __init__(self, draft: Any) -> None:
        super().__init__(layer_windows(draft.config), draft.device)
        self.draft = draft
        self.vocab_size = int(draft.config.vocab_size)
        offsets = getattr(draft, "d2t", None)
        self.target_ids = None if offsets is None else offsets + torch.arange(len(offsets), device=offsets.device)

    @classmethod
    def from_source(cls, draft: Any, source: TrainingSource) -> Self:
        """Return the steps of a draft that was trained from `source`."""
        return cls(draft)

    def _slot_states(self, verified: VerifiedSlots) -> torch.Tensor:
        states: torch.Tensor = self.draft.project_hidden_states(verified.aux.flatten(-2))
        return states

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.draft.compute_logits(states)
        return logits

    def _forward(self, tokens: torch.Tensor, states: torch.Tensor, placement: Placement) -> torch.Tensor:
        model = self.draft.model
        rotary = model.rotary_emb(placement.position_ids)
        embeds = model.embed_tokens(tokens).to(states.dtype)
        for index, (layer, cache) in enumerate(zip(model.layers, self._layers, strict=True)):
            inputs = layer.input_layernorm(embeds if index == 0 else states)
            if index == 0:
                normed = layer.hidden_norm(states)
                inputs = torch.cat((inputs.to(normed.dtype), normed), dim=-1)
                states = normed if layer.norm_before_residual else states
            states = states + cached_attention(layer.self_attn, inputs, rotary, cache, placement)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        output: torch.Tensor = model.norm(states) if self.draft.config.norm_output else states
        return output


class PeagleSteps(Eagle3Steps, ParallelSteps):
    """Steps of an EAGLE-3 draft that was trained to draft all depths at once."""

    name = "P-EAGLE"

    def draft_all(self, verified: VerifiedSlots, depth: int) -> torch.Tensor:
        """Append verified slots; return logits [B, K, D] of all depths, from one pass with K-1 masked slots at the end.

        A masked slot holds the mask token and the mask's state, has the position of its depth, and attends to the
        verified slots and to the masked ones before it.
        """
        positions = self._append(verified)
        batch, num_masked = len(positions), depth - 1
        first = int(positions.max()) + 1
        steps = torch.arange(num_masked, device=self._device)
        mask_tokens = torch.full((batch, num_masked), int(self.draft.config.mask_token_id), device=self._device)
        mask_states = self.draft.masked_projected_hidden()[None].expand(batch, num_masked, -1)
        slot_rows = torch.arange(first + num_masked, device=self._device) <= positions[:, :, None]
        causal = torch.ones(num_masked, num_masked, dtype=torch.bool, device=self._device).tril().expand(batch, -1, -1)
        masked_rows = torch.cat((self._slot_mask(first, num_masked), causal), dim=-1)
        placement = Placement(
            position_ids=torch.cat((positions, self._lengths[:, None] + steps), dim=1),
            cache_positions=torch.cat((positions, (first + steps).expand(batch, -1)), dim=1),
            attention_mask=torch.cat((slot_rows, masked_rows), dim=1),
        )
        tokens = torch.cat((verified.next_tokens, mask_tokens), dim=1)
        states = self._forward(tokens, torch.cat((self._slot_states(verified), mask_states), dim=1), placement)
        newest = states.gather(1, (verified.counts - 1)[:, None, None].expand(-1, 1, states.shape[-1]))
        return self._logits(torch.cat((newest, states[:, positions.shape[1] :]), dim=1))
