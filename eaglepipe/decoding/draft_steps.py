"""A draft run with a key-value cache of the verified slots, exactly as its training runs it.

A verified slot t has the target's states at token t, the embedding of token t+1 and rotary position t.
Shapes: B rows, m new slots, n guesses, E earlier guesses, K depths, S cache entries, H draft hidden, D draft
vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from eaglepipe.decoding.draft_cache import DraftCache, Placement
from eaglepipe.decoding.drafters import VerifiedSlots


class DraftSteps(ABC):
    """Owns the cache of a batch: which entries hold slots and guesses, and which tokens attend to which."""

    name: str  # as the tables show the drafter
    vocab_size: int  # of the target
    target_ids: torch.Tensor | None  # of the draft's logits, int64 [D]; None if those are of all target ids

    def __init__(
        self, windows: Sequence[int | None], device: torch.device, *, windows_look_ahead: bool = False
    ) -> None:
        """Prepare for `begin`.

        Args:
            windows: of attention, one a layer; None if the layer reads everything.
            windows_look_ahead: whether layers with a window read later guesses too, as far as they are drafted at once.
        """
        self._windows, self._windows_look_ahead, self._device = windows, windows_look_ahead, device

    def begin(self, num_rows: int) -> None:
        """Start a batch of empty rows."""
        self._layers = [DraftCache(window, looks_ahead=self._windows_look_ahead) for window in self._windows]
        self._lengths = torch.zeros(num_rows, dtype=torch.int64, device=self._device)
        self._longest = 0

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows, int64 [B']."""
        self._lengths = self._lengths[rows]
        for layer in self._layers:
            layer.select(rows)

    def to_target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """Map draft ids of any shape to target ids."""
        return draft_ids if self.target_ids is None else self.target_ids[draft_ids]

    def _append(self, verified: VerifiedSlots) -> torch.Tensor:
        """Lengthen the rows by new slots; return the slots' positions, int64 [B, m]."""
        positions = self._lengths[:, None] + torch.arange(verified.next_tokens.shape[1], device=self._device)
        self._lengths = self._lengths + verified.counts
        self._longest = int(self._lengths.max())
        return positions

    def _slot_mask(self, length: int, num_new: int) -> torch.Tensor:
        """Return bool [B, n, length], True at each row's verified slots."""
        mask = torch.arange(length, device=self._device) < self._lengths[:, None]
        return mask[:, None].expand(-1, num_new, -1)

    @abstractmethod
    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return logits [..., D] of states [..., H]."""


class SequentialSteps(DraftSteps):
    """A draft that guesses one depth after the other, as TTT unrolls it.

    A verified slot is step 0. A guess at depth k is step k of the newest slot: it carries the state of the step before,
    has position t+k, and attends to the verified slots up to t and to the guesses on its own path. Accepted guesses
    return as step 0 of their own slots.
    """

    def extend(self, verified: VerifiedSlots) -> tuple[torch.Tensor, torch.Tensor]:
        """Append verified slots; return state [B, H] and logits [B, D] of each row's newest: the guess at depth 0."""
        positions = self._append(verified)
        length = int(positions.max()) + 1
        mask = torch.arange(length, device=self._device) <= positions[:, :, None]
        placement = Placement(position_ids=positions, cache_positions=positions, attention_mask=mask)
        states = self._forward(verified.next_tokens, self._slot_states(verified), placement)
        newest = states[torch.arange(len(states), device=self._device), verified.counts - 1]
        return newest, self._logits(newest)

    def step(
        self, tokens: torch.Tensor, states: torch.Tensor, visible: torch.Tensor, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one level of guesses; return its states [B, n, H] and logits [B, n, D].

        Args:
            tokens: int64 [B, n], guesses at `depth` - 1.
            states: [B, n, H], the state that each was guessed from.
            visible: bool [B, n, E + n], the guesses stepped since `extend` that each attends to, itself included.
            depth: of the guesses that the logits give, from 1.
        """
        num_new = tokens.shape[1]
        first = self._longest + visible.shape[-1] - num_new
        placement = Placement(
            position_ids=(self._lengths - 1 + depth)[:, None].expand_as(tokens),
            cache_positions=(first + torch.arange(num_new, device=self._device)).expand_as(tokens),
            attention_mask=torch.cat((self._slot_mask(self._longest, num_new), visible), dim=-1),
        )
        states = self._forward(tokens, states, placement)
        return states, self._logits(states)

    @abstractmethod
    def _slot_states(self, verified: VerifiedSlots) -> torch.Tensor:
        """Return the states [B, m, H] that step 0 reads beside the embeddings."""

    @abstractmethod
    def _forward(self, tokens: torch.Tensor, states: torch.Tensor, placement: Placement) -> torch.Tensor:
        """Run all layers over tokens [B, n] and states [B, n, H]; return the states to carry."""


class ParallelSteps(DraftSteps):
    """A draft whose layers run once a round, for all depths."""

    is_chained = False
    """Whether a depth's logits depend on the token chosen one depth before, by `follow`."""

    @abstractmethod
    def draft_all(self, verified: VerifiedSlots, depth: int) -> torch.Tensor:
        """Append verified slots; return logits [B, K, D] of all depths, before any `follow`."""

    def follow(self, logits: torch.Tensor, previous: torch.Tensor, depth: int) -> torch.Tensor:
        """Return the logits [B, D] of a depth from 0, given those of `draft_all` and the target ids [B] before it."""
        return logits
