"""A target as stage 1 uses it, whichever library runs it: token ids in, states of every token out.

Shapes: N tokens of all sequences, A aux layers, Ht target hidden, V vocabulary, D draft vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.target_head import HeadSpec
from eaglepipe.vocab import DraftVocab


@dataclass(frozen=True, kw_only=True)
class CapturedStates:
    """States of tokens [N], sequence after sequence, or [B, T], in the target's dtype and on its device."""

    aux: torch.Tensor  # [..., A, Ht] residual stream at the aux boundaries
    last_hidden: torch.Tensor  # [..., Ht] after the final norm


class TargetParts(Protocol):
    """What a cache keeps of a target besides its states."""

    @property
    def architectures(self) -> list[str]:
        """Names by which a draft is chosen."""

    def head_spec(self) -> HeadSpec:
        """Return the scale and soft cap that turn raw head outputs into logits."""

    def draft_start_tensors(self, vocab: DraftVocab, *, full_head: bool) -> dict[str, torch.Tensor]:
        """Return the tensors of `target.safetensors`: embeddings, head rows [D] or all [V], final norm; on the CPU."""

    def config_json(self) -> dict[str, Any]:
        """Return the fields of the target's config.json."""


class TargetWithHead(TargetParts, Protocol):
    """A target whose head can be applied."""

    @property
    def device(self) -> torch.device:
        """Device of the states."""

    def head_logits(self, last_hidden: torch.Tensor) -> torch.Tensor:
        """Return the target's logits, float32 [n, V], of last hidden states [n, Ht]."""

    def narrow_logits(self, last_hidden: torch.Tensor) -> torch.Tensor:
        """Return the same logits in the narrowest type that holds them exactly."""


class TargetModel(TargetWithHead, Protocol):
    """A target that is loaded for capture at its aux boundaries."""

    def capture_tokens(self, sequences: Sequence[NDArray[np.int32]]) -> CapturedStates:
        """Run the target over a batch of sequences of token ids [T] each; returns the states of their N tokens.

        Raises:
            TargetError: a sequence whose states could not be reproduced in another batch.
        """

    def capture_pieces(self, sequence: NDArray[np.int32], piece_tokens: int) -> Iterator[CapturedStates]:
        """Run the target over one sequence of token ids [T]; yields the states of so many tokens after the other.

        Raises:
            TargetError: as `capture_tokens`, or the target cannot be run in pieces.
        """
