"""A drafter as an engine sees it: it takes the slots verified in a round and proposes a tree of guesses for the next.

Shapes: B rows, m new slots, N guesses of a round, A aux layers, Ht target hidden, V target vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class VerifiedSlots:
    """Slots that extend those a drafter already holds: slot i has the target's states at token i, and token i+1.

    Only the first `counts` slots of a row are valid. The token of its last one is the newest of the sequence, which the
    target has not read yet.
    """

    aux: torch.Tensor  # [B, m, A, Ht]
    last_hidden: torch.Tensor | None  # [B, m, Ht], after the final norm; None if a cache does not hold it
    next_tokens: torch.Tensor  # int64 [B, m]
    counts: torch.Tensor  # int64 [B]
    sequences: Sequence[Sequence[int]]  # all tokens of each row, the newest included; read-only


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Guesses for one round: a tree below each row's newest token."""

    tokens: torch.Tensor  # int64 [B, N]
    parents: torch.Tensor  # int64 [B, N], -1 for the newest token; a parent precedes its children
    probs: torch.Tensor | None = None  # float32 [B, N, V], the distributions that a sampled chain was drawn from


@dataclass(frozen=True, kw_only=True)
class DraftMethod:
    """Label of a drafter: its name, and a chain of `depth` guesses or a tree of that depth with `size` nodes."""

    drafter: str
    shape: str  # none, chain or tree
    depth: int
    size: int

    @property
    def label(self) -> str:
        if self.shape == "none":
            return self.drafter
        return f"{self.drafter}, {self.shape} of {self.size}" + (f" (depth {self.depth})" * (self.shape == "tree"))


class Drafter(Protocol):
    """A source of guesses for one batch at a time: `begin`, then `extend` and `propose` in turn."""

    @property
    def method(self) -> DraftMethod: ...

    def begin(self, num_rows: int) -> None:
        """Start a batch of empty rows."""

    def extend(self, verified: VerifiedSlots) -> None:
        """Append the slots that the last round verified."""

    def propose(self, generator: torch.Generator) -> Proposal: ...

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows, int64 [B']."""


def chain_proposal(tokens: torch.Tensor, probs: torch.Tensor | None = None) -> Proposal:
    """Return guesses [B, K] as a chain: each one's parent is the guess before it."""
    parents = torch.arange(-1, tokens.shape[1] - 1, device=tokens.device).expand(len(tokens), -1)
    return Proposal(tokens=tokens, parents=parents, probs=probs)
