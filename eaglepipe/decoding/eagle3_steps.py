"""`DraftSteps` of EAGLE-3 drafts, of all forms and architectures, and P-EAGLE's one pass that guesses every depth.

Shapes: B rows, m new slots, n guesses, K depths, S places, H draft hidden, D draft vocabulary.
"""

from typing import Any

import torch

from eaglepipe.decoding.draft_steps import CachedSteps, cached_attention
from eaglepipe.decoding.drafters import Verified


class Eagle3Steps(CachedSteps):
    """Steps of a `LlamaEagle3DraftModel`."""

    name = "EAGLE-3"

    def __init__(self, draft: Any) -> None:
        super().__init__(len(draft.model.layers), draft.device)
        self.draft = draft
        self.vocab_size = int(draft.config.vocab_size)
        self.target_ids = _target_ids(draft)

    def _true_states(self, verified: Verified) -> torch.Tensor:
        states: torch.Tensor = self.draft.project_hidden_states(verified.aux)
        return states

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.draft.compute_logits(states)
        return logits

    def _forward(
        self,
        tokens: torch.Tensor,
        states: torch.Tensor,
        *,
        positions: torch.Tensor,
        places: torch.Tensor,
        readable: torch.Tensor,
    ) -> torch.Tensor:
        model = self.draft.model
        cos, sin = model.rotary_emb(positions, longest=positions.max() + 1)
        rotary = (cos[:, :, None], sin[:, :, None])
        embeds = model.embed_tokens(tokens).to(states.dtype)
        for index, (layer, cache) in enumerate(zip(model.layers, self._layers, strict=True)):
            inputs = _fused_input(layer, embeds, states) if index == 0 else layer.input_layernorm(states)
            attended = cached_attention(layer.self_attn, inputs, rotary, cache, places=places, readable=readable)
            states = states + attended
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        output: torch.Tensor = model.norm(states) if self.draft.config.norm_output else states
        return output


class PeagleSteps(Eagle3Steps):
    """Steps of an EAGLE-3 draft trained to guess all depths at once (spec 9)."""

    name = "P-EAGLE"

    def guess_all(self, verified: Verified, depth: int) -> torch.Tensor:
        """Logits [B, K, D] of all depths, from one pass over the new slots and K-1 masked ones behind the newest.

        A masked slot holds the mask token and the mask's state, is rotated where its depth lies, and reads the verified
        slots and the masked ones before it.
        """
        places = self._append(verified)
        batch, num_masked = len(places), depth - 1
        first = int(places.max()) + 1
        steps = torch.arange(num_masked, device=self._device)
        mask_tokens = torch.full((batch, num_masked), int(self.draft.config.mask_token_id), device=self._device)
        mask_states = self.draft.masked_projected_hidden()[None].expand(batch, num_masked, -1)
        slots = torch.arange(first + num_masked, device=self._device) <= places[:, :, None]
        masked = torch.ones(num_masked, num_masked, dtype=torch.bool, device=self._device).tril().expand(batch, -1, -1)
        states = self._forward(
            torch.cat((verified.next_tokens, mask_tokens), dim=1),
            torch.cat((self._true_states(verified), mask_states), dim=1),
            positions=torch.cat((places, self._lengths[:, None] + steps), dim=1),
            places=torch.cat((places, (first + steps).expand(batch, -1)), dim=1),
            readable=torch.cat((slots, torch.cat((self._kept(first, num_masked), masked), dim=-1)), dim=1),
        )
        newest = states.gather(1, (verified.counts - 1)[:, None, None].expand(-1, 1, states.shape[-1]))
        return self._logits(torch.cat((newest, states[:, places.shape[1] :]), dim=1))


def _fused_input(layer: Any, embeds: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    normed = layer.hidden_norm(states)
    return torch.cat((layer.input_layernorm(embeds).to(normed.dtype), normed), dim=-1)


def _target_ids(draft: Any) -> torch.Tensor | None:
    offsets = getattr(draft, "d2t", None)
    return None if offsets is None else offsets + torch.arange(len(offsets), device=offsets.device)
