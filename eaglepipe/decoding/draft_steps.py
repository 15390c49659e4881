"""A draft with a cache, exactly as its training unrolls it (spec 5).

A verified slot t is step 0: the target's states at token t, the embedding of token t+1, rotated at t. A guess at depth
k is what the unroll calls step k of the newest slot: it carries the state of the step before, is rotated at t+k, and
reads the verified slots up to t and the guesses on its own path. Accepted guesses come anew, as step 0 of own slots.
Shapes: B rows, m new slots, n guesses, E earlier guesses, S places, H draft hidden, D draft vocabulary.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from eaglepipe.decoding.draft_cache import DraftCache
from eaglepipe.decoding.drafters import Verified
from eaglepipe.eagle.layers.rope import Rotary, apply_rotary


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


class CachedSteps(ABC):
    """What the drafts share: where slots and guesses lie in the cache, and which may read which."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._num_layers, self._device = num_layers, device

    def begin(self, num_rows: int) -> None:
        self._layers = [DraftCache() for _ in range(self._num_layers)]
        self._lengths = torch.zeros(num_rows, dtype=torch.int64, device=self._device)
        self._used = 0

    def extend(self, verified: Verified) -> tuple[torch.Tensor, torch.Tensor]:
        places = self._append(verified)
        num_places = int(places.max()) + 1
        readable = torch.arange(num_places, device=self._device) <= places[:, :, None]
        states = self._forward(
            verified.next_tokens, self._true_states(verified), positions=places, places=places, readable=readable
        )
        newest = states[torch.arange(len(states), device=self._device), verified.counts - 1]
        return newest, self._logits(newest)

    def step(
        self, tokens: torch.Tensor, states: torch.Tensor, visible: torch.Tensor, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, num_new = tokens.shape
        first = self._used + visible.shape[-1] - num_new
        states = self._forward(
            tokens,
            states,
            positions=(self._lengths - 1 + depth)[:, None].expand_as(tokens),
            places=(first + torch.arange(num_new, device=self._device)).expand(batch, -1),
            readable=torch.cat((self._kept(self._used, num_new), visible), dim=-1),
        )
        return states, self._logits(states)

    def select(self, rows: torch.Tensor) -> None:
        self._lengths = self._lengths[rows]
        for layer in self._layers:
            layer.select(rows)

    def _append(self, verified: Verified) -> torch.Tensor:
        """Places of new slots, which are their positions, int64 [B, m]; rows are longer from now on."""
        places = self._lengths[:, None] + torch.arange(verified.next_tokens.shape[1], device=self._device)
        self._lengths = self._lengths + verified.counts
        self._used = int(self._lengths.max())
        return places

    def _kept(self, num_places: int, num_new: int) -> torch.Tensor:
        """bool [B, n, num_places], True at each row's verified slots."""
        kept = torch.arange(num_places, device=self._device) < self._lengths[:, None]
        return kept[:, None].expand(-1, num_new, -1)

    @abstractmethod
    def _true_states(self, verified: Verified) -> torch.Tensor:
        """What step 0 reads beside the embeddings, [B, m, H]."""

    @abstractmethod
    def _forward(
        self,
        tokens: torch.Tensor,
        states: torch.Tensor,
        *,
        positions: torch.Tensor,
        places: torch.Tensor,
        readable: torch.Tensor,
    ) -> torch.Tensor:
        """All layers over tokens [B, n] and states [B, n, H]; `readable` bool [B, n, S]: the states to carry."""

    @abstractmethod
    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """States [B, n, H] -> logits [B, n, D]."""


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
