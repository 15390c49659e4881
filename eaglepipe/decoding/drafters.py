"""What proposes tokens, seen from the engine: it is told what was verified, and answers with a tree of guesses.

Shapes: B rows, m new verified slots, N guesses of a round, A aux layers, Ht target hidden, V target vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

MAX_NGRAM = 3


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Slots that follow those a drafter has: what the target computed at token i, and token i+1 (spec 3).

    Each row's first `counts` are real; the last one's token is the newest of all, which the target has not read yet.
    """

    aux: torch.Tensor  # [B, m, A, Ht]
    last_hidden: torch.Tensor | None  # [B, m, Ht] after the final norm; None where a cache does not hold it
    next_tokens: torch.Tensor  # int64 [B, m]
    counts: torch.Tensor  # int64 [B]
    sequences: Sequence[Sequence[int]]  # all tokens of each row so far, the newest too; not to be changed


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Guesses for one round: a tree below each row's newest token."""

    tokens: torch.Tensor  # int64 [B, N]
    parents: torch.Tensor  # int64 [B, N], -1 for the newest token; a parent comes before its children
    probs: torch.Tensor | None = None  # float32 [B, N, V], of a chain whose tokens were drawn from these

    @property
    def num_guesses(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a drafter drafts, for labels: a chain of `depth`, or a tree of that depth with `size` nodes."""

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
    """One batch at a time: `begin`, then `extend` and `propose` in turn."""

    @property
    def method(self) -> Method: ...

    def begin(self, num_rows: int) -> None: ...

    def extend(self, verified: Verified) -> None: ...

    def propose(self, generator: torch.Generator) -> Proposal: ...

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, int64 [B']."""
        ...


class _TextDrafter:
    """What the drafters share that look at tokens alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sequences: Sequence[Sequence[int]] = ()

    def begin(self, num_rows: int) -> None:
        pass

    def extend(self, verified: Verified) -> None:
        self._sequences = verified.sequences

    def select(self, rows: torch.Tensor) -> None:
        self._sequences = [self._sequences[row] for row in rows.tolist()]

    def _chain(self, guesses: NDArray[np.int64]) -> Proposal:
        return chain_proposal(torch.from_numpy(guesses).to(self._device))


class NoDraft(_TextDrafter):
    """Proposes nothing: the target decodes alone, by the same path."""

    method = Method(drafter="none", shape="none", depth=0, size=0)

    def propose(self, generator: torch.Generator) -> Proposal:
        return self._chain(np.empty((len(self._sequences), 0), np.int64))


class BigramDrafter(_TextDrafter):
    """A chain of likeliest successors by `acceptance.bigram_table`."""

    def __init__(self, successor: NDArray[np.int64], depth: int, device: torch.device) -> None:
        super().__init__(device)
        self._successor = np.maximum(successor, 0)
        self.method = Method(drafter="bigram table", shape="chain", depth=depth, size=depth)

    def propose(self, generator: torch.Generator) -> Proposal:
        guesses = np.empty((len(self._sequences), self.method.depth), np.int64)
        token = np.array([sequence[-1] for sequence in self._sequences], np.int64)
        for step in range(self.method.depth):
            token = self._successor[np.minimum(token, len(self._successor) - 1)]
            guesses[:, step] = token
        return self._chain(guesses)


class LookupDrafter(_TextDrafter):
    """Prompt lookup: what followed the latest earlier occurrence of the longest n-gram that the row ends in.

    Where nothing matches, or the match is near the end, the last token found is repeated: a round costs the same.
    """

    def __init__(self, depth: int, device: torch.device) -> None:
        super().__init__(device)
        self.method = Method(drafter="prompt lookup", shape="chain", depth=depth, size=depth)

    def propose(self, generator: torch.Generator) -> Proposal:
        found = [self._continuation(np.asarray(sequence, np.int64)) for sequence in self._sequences]
        return self._chain(np.stack(found))

    def _continuation(self, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
        depth = self.method.depth
        for size in range(min(MAX_NGRAM, len(sequence) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(sequence[:-1], size)
            matches = np.flatnonzero((windows == sequence[-size:]).all(axis=1))
            if len(matches):
                following = sequence[matches[-1] + size :][:depth]
                return np.pad(following, (0, depth - len(following)), mode="edge")
        return np.full(depth, sequence[-1])


def chain_proposal(tokens: torch.Tensor, probs: torch.Tensor | None = None) -> Proposal:
    """Guesses [B, K] that follow each other."""
    parents = torch.arange(-1, tokens.shape[1] - 1, device=tokens.device).expand(len(tokens), -1)
    return Proposal(tokens=tokens, parents=parents, probs=probs)
