"""`DraftSteps` of block-parallel drafts (DFlash): one block a round, which reads the verified slots as context.

Shapes: B rows, m new slots, K depths, n block positions, H draft hidden, D draft vocabulary.
"""

from typing import Any, Self

import torch

from eaglepipe.decoding.draft_cache import Placement, cache_keys, cached_attention
from eaglepipe.decoding.draft_steps import ParallelSteps
from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.eagle.dflash.config import block_windows
from eaglepipe.training.data.batch import TrainingSource


class DflashSteps(ParallelSteps):
    """Steps of a `DFlashDraftModel`.

    A verified slot is context: every layer keeps the keys and values of its projected aux states, at its position, and
    nothing else of it is computed. A block holds the newest token, at the position after the last slot, and masks
    behind it; it attends to all slots and to itself, and leaves nothing behind. Fewer guesses than the draft was
    trained for are a shorter block, as engines run it. A window counts positions before each block position, as engines
    do; training counts context slots before the block.
    """

    name = "DFlash"

    _states: torch.Tensor  # [B, K, H], of the guesses of this round

    def __init__(self, draft: Any) -> None:
        config = draft.config
        super().__init__(block_windows(config), draft.device, windows_look_ahead=bool(config.sliding_window_non_causal))
        self.draft = draft
        self.vocab_size = int(draft.config.vocab_size)
        offsets = getattr(draft, "d2t", None)
        self.target_ids = None if offsets is None else offsets + torch.arange(len(offsets), device=offsets.device)

    @classmethod
    def from_source(cls, draft: Any, source: TrainingSource) -> Self:
        """Return the steps of a draft that was trained from `source`."""
        return cls(draft)

    def draft_all(self, verified: VerifiedSlots, depth: int) -> torch.Tensor:
        self._read_context(verified)
        newest = verified.next_tokens.gather(1, verified.counts[:, None] - 1)
        block = self._run_block(newest, num_masks=depth - int(self.draft.config.sample_from_anchor))
        self._states = block[:, -depth:]
        return self._logits(self._states)

    def select(self, rows: torch.Tensor) -> None:
        self._states = self._states[rows]
        super().select(rows)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.draft.compute_logits(states)
        return logits

    def _read_context(self, verified: VerifiedSlots) -> None:
        """Append verified slots to the cache of every layer."""
        positions = self._append(verified)
        context = self.draft.project_hidden_states(verified.aux.flatten(-2))
        unmasked = torch.ones(1, dtype=torch.bool, device=self._device)
        placement = Placement(position_ids=positions, cache_positions=positions, attention_mask=unmasked)
        rotary = self.draft.rotary_emb(positions)
        for layer, cache in zip(self.draft.layers, self._layers, strict=True):
            cache_keys(layer.self_attn, context, rotary, cache, placement)

    def _run_block(self, newest: torch.Tensor, num_masks: int) -> torch.Tensor:
        """Return the states [B, n, H] of a block of the newest tokens [B, 1] and masks, after the final norm."""
        draft, size = self.draft, 1 + num_masks
        masks = newest.new_full((len(newest), num_masks), int(draft.config.mask_token_id))
        offsets = torch.arange(size, device=self._device)
        block = torch.ones(len(newest), size, size, dtype=torch.bool, device=self._device)
        placement = Placement(
            position_ids=self._lengths[:, None] + offsets,
            cache_positions=(self._longest + offsets).expand(len(newest), -1),
            attention_mask=torch.cat((self._slot_mask(self._longest, size), block), dim=-1),
        )
        rotary = draft.rotary_emb(placement.position_ids)
        states = draft.embed_tokens(torch.cat((newest, masks), dim=1))
        for layer, cache in zip(draft.layers, self._layers, strict=True):
            inputs = layer.input_layernorm(states)
            states = states + cached_attention(layer.self_attn, inputs, rotary, cache, placement)
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        output: torch.Tensor = draft.norm(states)
        return output
