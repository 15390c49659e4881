"""An EAGLE-3 draft with a cache, exactly as its training unrolls it (spec 5).

A verified slot t is step 0: aux states of token t, the embedding of token t+1, rotated at t. A guess at depth k is what
the unroll calls step k of the newest slot: it carries the state of the step before, is rotated at t+k, and reads the
verified slots up to t and the guesses on its own path. When guesses are accepted, their slots come anew as step 0.
Shapes: B rows, m new slots, n guesses, E earlier guesses, S places, H draft hidden, D draft vocabulary.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from eaglepipe.eagle.rope import Rotary, apply_rotary
from eaglepipe.evaluation.draft_cache import DraftCache
from eaglepipe.evaluation.drafters import Verified


class DraftSteps(Protocol):
    """A draft that can be stepped; the drafting strategies know no more of it."""

    @property
    def name(self) -> str: ...

    @property
    def target_ids(self) -> torch.Tensor | None:
        """Target ids of the draft's logits, int64 [D]; None where they are the same."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def begin(self, num_rows: int) -> None: ...

    def extend(self, verified: Verified) -> tuple[torch.Tensor, torch.Tensor]:
        """State [B, H] and logits [B, D] of each row's newest slot: the guess at depth 0."""
        ...

    def step(
        self, tokens: torch.Tensor, states: torch.Tensor, visible: torch.Tensor, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One level of guesses deeper.

        Args:
            tokens: int64 [B, n], guesses at `depth` - 1.
            states: [B, n, H], the state that each was guessed from.
            visible: bool [B, n, E + n], which of the guesses stepped so far since `extend` each may read, itself too.
            depth: of what is guessed now, from 1.

        Returns: states [B, n, H] and logits [B, n, D].
        """
        ...

    def select(self, rows: torch.Tensor) -> None: ...


class Eagle3Steps:
    """`DraftSteps` of `LlamaEagle3DraftModel`, in any of its forms."""

    name = "EAGLE-3"

    def __init__(self, draft: LlamaEagle3DraftModel) -> None:
        self.draft, self.config = draft, draft.config
        self.vocab_size = int(draft.config.vocab_size)
        self.target_ids = _target_ids(draft)

    def begin(self, num_rows: int) -> None:
        self._layers = [DraftCache() for _ in self.draft.model.layers]
        self._lengths = torch.zeros(num_rows, dtype=torch.int64, device=self.draft.device)
        self._used = 0

    def extend(self, verified: Verified) -> tuple[torch.Tensor, torch.Tensor]:
        states = self._extended(verified)
        newest = states[torch.arange(len(states), device=states.device), verified.counts - 1]
        return newest, self.draft.compute_logits(newest)

    def step(
        self, tokens: torch.Tensor, states: torch.Tensor, visible: torch.Tensor, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_stepped = visible.shape[-1] - tokens.shape[1]
        positions = (self._lengths - 1 + depth)[:, None].expand_as(tokens)
        states = self._guess(tokens, states, visible, positions, num_stepped)
        return states, self.draft.compute_logits(states)

    def select(self, rows: torch.Tensor) -> None:
        self._lengths = self._lengths[rows]
        for layer in self._layers:
            layer.select(rows)

    def _extended(self, verified: Verified) -> torch.Tensor:
        """Step 0 of the new slots: their states [B, m, H]."""
        num_new = verified.next_tokens.shape[1]
        positions = self._lengths[:, None] + torch.arange(num_new, device=self._lengths.device)
        self._lengths = self._lengths + verified.counts
        self._used = int(self._lengths.max())
        num_places = int(positions.max()) + 1
        readable = torch.arange(num_places, device=positions.device) <= positions[:, :, None]
        states = self.draft.project_hidden_states(verified.aux)
        return self._forward(verified.next_tokens, states, positions, positions, readable)

    def _guess(
        self,
        tokens: torch.Tensor,
        states: torch.Tensor,
        visible: torch.Tensor,
        positions: torch.Tensor,
        num_stepped: int,
    ) -> torch.Tensor:
        """States [B, n, H] of guesses, written behind the `num_stepped` earlier ones."""
        batch, num_new = tokens.shape
        device = tokens.device
        places = (self._used + num_stepped + torch.arange(num_new, device=device)).expand(batch, -1)
        kept = torch.arange(self._used, device=device) < self._lengths[:, None]
        readable = torch.cat((kept[:, None].expand(-1, num_new, -1), visible), dim=-1)
        return self._forward(tokens, states, positions, places, readable)

    def _forward(
        self,
        tokens: torch.Tensor,
        states: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        readable: torch.Tensor,
    ) -> torch.Tensor:
        """All layers over tokens [B, n] and states [B, n, H]; `readable` bool [B, n, S]."""
        model: Any = self.draft.model
        cos, sin = model.rotary_emb(positions, longest=positions.max() + 1)
        rotary = (cos[:, :, None], sin[:, :, None])
        embeds = model.embed_tokens(tokens).to(states.dtype)
        for index, (layer, cache) in enumerate(zip(model.layers, self._layers, strict=True)):
            inputs = _fused_input(layer, embeds, states) if index == 0 else layer.input_layernorm(states)
            attended = cached_attention(layer.self_attn, inputs, rotary, cache, places=places, readable=readable)
            states = states + attended
            states = states + layer.mlp(layer.post_attention_layernorm(states))
        output: torch.Tensor = model.norm(states) if self.config.norm_output else states
        return output


def cached_attention(
    attention: Any,
    inputs: torch.Tensor,
    rotary: Rotary,
    cache: DraftCache,
    *,
    places: torch.Tensor,
    readable: torch.Tensor,
) -> torch.Tensor:
    """Attention of new tokens [B, n, input size] over what a cache holds once they are in it: [B, n, H].

    Args:
        attention: projections, `head_dim` and `scale` of an `Eagle3LlamaAttention`.
        rotary: cos, sin [B, n, 1, R].
        places: int64 [B, n], where their keys go.
        readable: bool [B, n, S], which of the first S places each may read.
    """
    heads = (-1, attention.head_dim)
    query = apply_rotary(attention.q_proj(inputs).unflatten(-1, heads), *rotary)
    key = apply_rotary(attention.k_proj(inputs).unflatten(-1, heads), *rotary)
    cache.write(key, attention.v_proj(inputs).unflatten(-1, heads), places)
    keys, values = cache.first(readable.shape[-1])
    groups = query.shape[2] // keys.shape[1]
    queries = query.unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [B, kv, groups·n, d]
    mask = readable[:, None].repeat(1, 1, groups, 1)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=attention.scale)
    merged = attended.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2)
    output: torch.Tensor = attention.o_proj(merged)
    return output


def _fused_input(layer: Any, embeds: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    normed = layer.hidden_norm(states)
    return torch.cat((layer.input_layernorm(embeds).to(normed.dtype), normed), dim=-1)


def _target_ids(draft: Any) -> torch.Tensor | None:
    offsets = getattr(draft, "d2t", None)
    return None if offsets is None else offsets + torch.arange(len(offsets), device=offsets.device)
