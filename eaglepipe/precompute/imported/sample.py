"""One sample of another tool as tensors, and the folder that it lies in.

Shapes: T tokens, A aux layers, Ht the target's hidden size, D draft vocabulary.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
import xxhash

from eaglepipe.cache.schema import ShardSpec

LastHidden = Literal["before_norm", "after_norm"]
"""Whether last hidden states are the input of the target's final norm, or its output."""


class NoStatesError(Exception):
    """A row of tokens for which the tool has stored no states."""


@dataclass(frozen=True, kw_only=True)
class ForeignSample:
    """What a tool has stored of one sample, in its own types."""

    input_ids: torch.Tensor  # int [T]
    loss_mask: torch.Tensor | None  # [T] 1: a token of the assistant; None if it was not stored
    aux: torch.Tensor  # [T, A, Ht] in the tool's order of layers
    last_hidden: torch.Tensor | None  # [T, Ht]; None if only probabilities were stored
    probs: torch.Tensor | None = None  # [T, D + 1] over the draft vocabulary, and whether the target's choice is in it
    stated: LastHidden | None = None  # by the sample itself

    def digest(self) -> str:
        """Return the xxh3_128 of all tensors: types, shapes and bytes."""
        state = xxhash.xxh3_128()
        for tensor in (self.input_ids, self.loss_mask, self.aux, self.last_hidden, self.probs):
            if tensor is None:
                state.update(b"null")
                continue
            state.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
            state.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return state.hexdigest()


class ForeignFolder(Protocol):
    """Samples of another tool, one read at a time."""

    last_hidden: LastHidden | None
    """Convention of the tool; None if it stores probabilities instead."""

    mask_advice: str
    """How the tool is made to store a loss mask."""

    root: Path
    """The folder of all its files."""

    selected_token_ids: tuple[int, ...] | None
    """The draft vocabulary of stored probabilities."""

    def check(self, spec: ShardSpec) -> None:
        """Raise DataError if a cache of these columns cannot be made of the folder, as far as that is known at once."""

    def sample_ids(self) -> Iterator[str]:
        """Yield the id of every sample, in an order that only the folder's content decides."""

    def where(self, sample_id: str) -> str:
        """Return the file of a sample below `root`, for messages to the user."""

    def read(self, sample_id: str) -> ForeignSample:
        """Read a sample.

        Raises:
            RowError: it cannot be used; the message begins with its place.
            NoStatesError: it has tokens only.
        """
