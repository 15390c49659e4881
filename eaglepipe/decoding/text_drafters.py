"""Drafters that read tokens alone: no draft at all, a bigram table, prompt lookup."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.decoding.drafters import DraftMethod, Proposal, VerifiedSlots, chain_proposal

MAX_NGRAM = 3

Tokens = NDArray[np.int64]


class TextDrafter:
    """Drafts a chain by a function from all tokens of a row to its guesses, int64 [K]."""

    def __init__(self, method: DraftMethod, continuation: Callable[[Tokens], Tokens], device: torch.device) -> None:
        self.method, self._continuation, self._device = method, continuation, device
        self._sequences: Sequence[Sequence[int]] = ()

    def begin(self, num_rows: int) -> None:
        pass

    def extend(self, verified: VerifiedSlots) -> None:
        self._sequences = verified.sequences

    def select(self, rows: torch.Tensor) -> None:
        self._sequences = [self._sequences[row] for row in rows.tolist()]

    def propose(self, generator: torch.Generator) -> Proposal:
        guesses = [self._continuation(np.asarray(sequence, np.int64)) for sequence in self._sequences]
        return chain_proposal(torch.from_numpy(np.stack(guesses)).to(self._device))


def no_drafter(device: torch.device) -> TextDrafter:
    """Return a drafter that proposes nothing: the target decodes alone, on the same path as with a draft."""
    method = DraftMethod(drafter="none", shape="none", depth=0, size=0)
    return TextDrafter(method, lambda _: np.empty(0, np.int64), device)


def bigram_drafter(successor: Tokens, depth: int, device: torch.device) -> TextDrafter:
    """Return a drafter that follows a table of likeliest successors, as `evaluation.bigram.bigram_table` counts it."""
    method = DraftMethod(drafter="bigram table", shape="chain", depth=depth, size=depth)
    table = np.maximum(successor, 0)

    def continuation(sequence: Tokens) -> Tokens:
        token, guesses = sequence[-1], np.empty(depth, np.int64)
        for step in range(depth):
            token = guesses[step] = table[min(token, len(table) - 1)]
        return guesses

    return TextDrafter(method, continuation, device)


def lookup_drafter(depth: int, device: torch.device) -> TextDrafter:
    """Return a drafter by prompt lookup; see `lookup_continuation`."""
    method = DraftMethod(drafter="prompt lookup", shape="chain", depth=depth, size=depth)
    return TextDrafter(method, lambda sequence: lookup_continuation(sequence, depth), device)


def lookup_continuation(sequence: Tokens, depth: int) -> Tokens:
    """Return the `depth` tokens after the latest earlier occurrence of the longest n-gram that `sequence` ends in.

    If no n-gram recurs, or it recurs near the end, the last token is repeated: a round costs the same either way.
    """
    for size in range(min(MAX_NGRAM, len(sequence) - 1), 0, -1):
        ngrams = np.lib.stride_tricks.sliding_window_view(sequence[:-1], size)
        matches = np.flatnonzero((ngrams == sequence[-size:]).all(axis=1))
        if len(matches):
            following = sequence[matches[-1] + size :][:depth]
            return np.pad(following, (0, depth - len(following)), mode="edge")
    return np.full(depth, sequence[-1])
