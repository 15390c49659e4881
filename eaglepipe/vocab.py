"""The draft vocabulary: which of the target's tokens a draft can propose.

Order of choice: forced ids, then by count with ties to the lower id, then the lowest unused ids; kept ascending.
V is the target config's vocabulary size, D the draft's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.errors import VocabError


@dataclass(frozen=True, kw_only=True)
class DraftVocab:
    """D selected ids of a target vocabulary of V."""

    selected_token_ids: torch.Tensor  # int64 [D], ascending
    selected_token_mask: torch.Tensor  # bool [V]
    counts: torch.Tensor  # int64 [V], supervised tokens in the corpus

    @property
    def size(self) -> int:
        """D."""
        return self.selected_token_ids.shape[0]

    @property
    def target_size(self) -> int:
        """V."""
        return self.selected_token_mask.shape[0]

    def coverage(self) -> float:
        """Return the share of the counted tokens that the draft vocabulary holds; 1 if none was counted."""
        total = int(self.counts.sum())
        return int(self.counts[self.selected_token_mask].sum()) / total if total else 1.0


def add_counts(counts: NDArray[np.int64], token_ids: NDArray[np.integer]) -> None:
    """Count `token_ids` [N] into `counts` [V], in place.

    Raises:
        VocabError: an id outside 0..V-1.
    """
    if token_ids.size == 0:
        return
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or high >= counts.shape[0]:
        wrong = low if low < 0 else high
        raise VocabError(f"token id {wrong} is outside the target's vocabulary of {counts.shape[0]}: wrong tokenizer?")
    counts += np.bincount(token_ids, minlength=counts.shape[0])


def build_draft_vocab(
    counts: NDArray[np.int64], draft_size: int | None, vocab_size: int, forced_ids: Iterable[int] = ()
) -> DraftVocab:
    """Choose the draft vocabulary from `counts` [V]; `draft_size` None, V or more keeps every token.

    Raises:
        VocabError: sizes that are not positive integers, forced ids outside V or more of them than D.
    """
    size = draft_vocab_size(draft_size, vocab_size)
    if counts.shape != (vocab_size,):
        raise VocabError(f"counts have shape {counts.shape}, the target's vocabulary has {vocab_size} tokens")
    forced = sorted(set(forced_ids))
    beyond = [token_id for token_id in forced if not 0 <= token_id < vocab_size]
    if beyond:
        raise VocabError(f"forced token ids {beyond} are outside the target's vocabulary of {vocab_size}")
    if len(forced) > size:
        raise VocabError(
            f"{len(forced)} token ids are forced into a draft vocabulary of {size}; raise vocab.draft_size"
        )
    every_id = np.arange(vocab_size)
    preference = np.lexsort((every_id, -counts, ~np.isin(every_id, forced)))
    selected = np.sort(preference[:size]).astype(np.int64)
    return DraftVocab(
        selected_token_ids=torch.from_numpy(selected),
        selected_token_mask=torch.from_numpy(np.isin(every_id, selected)),
        counts=torch.from_numpy(counts.astype(np.int64)),
    )


def vocab_tensors(vocab: DraftVocab) -> dict[str, torch.Tensor]:
    """Return the tensors of `vocab.safetensors`."""
    return dict(vars(vocab))


def draft_vocab_size(draft_size: int | None, vocab_size: int) -> int:
    """Return D: the size asked for, or V if none is, or one as large as that.

    Raises:
        VocabError: sizes that are not positive integers.
    """
    for name, size in (("draft vocabulary", draft_size), ("target vocabulary", vocab_size)):
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size <= 0):
            raise VocabError(f"the {name}'s size is {size!r}: it must be a positive integer")
    return vocab_size if draft_size is None else min(draft_size, vocab_size)
