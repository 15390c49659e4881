"""Sparse supervision: the few entries that hold nearly all of a distribution, and the mass of the others as one number.

N rows, D draft vocabulary, F ids that are always kept, C the most entries a row may have, E entries of all rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class SparseRule:
    """How many entries are kept: enough for 1 - tolerance of the mass, at most `max_entries`."""

    tolerance: float
    max_entries: int


@dataclass(frozen=True, kw_only=True)
class SparseRows:
    """Kept entries, row after row, ids ascending within a row, on the distribution's device."""

    probs: torch.Tensor  # float16 [E]
    ids: torch.Tensor  # int32 [E], index into the draft vocabulary
    counts: torch.Tensor  # int32 [N]
    tail: torch.Tensor  # float32 [N], 1 - what the kept float16 entries hold, never below 0

    @classmethod
    def joined(cls, parts: "list[SparseRows]") -> "SparseRows":
        """Rows of several chunks, in order; at least one."""
        return cls(
            probs=torch.cat([part.probs for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            counts=torch.cat([part.counts for part in parts]),
            tail=torch.cat([part.tail for part in parts]),
        )


@torch.no_grad()
def encode_sparse(target_probs: torch.Tensor, forced: torch.Tensor, rule: SparseRule) -> SparseRows:
    """Keep the forced ids and then the most probable ones until 1 - tolerance of the mass is kept.

    Args:
        target_probs: float32 [N, D], rows that sum to 1.
        forced: int64 [N, F], draft-vocabulary indices that are always kept; -1 for none; may repeat. They count
            towards `max_entries`.
        rule: see `SparseRule`; `max_entries` of at least F.
    """
    draft_size = target_probs.shape[1]
    assert forced.shape[1] <= rule.max_entries, "the ids that are always kept must fit"
    room = min(rule.max_entries, draft_size)
    ranked = _with_forced_first(target_probs, forced)
    chosen = ranked.topk(room, dim=-1).indices
    kept = target_probs.gather(-1, chosen)
    before = kept.cumsum(dim=-1) - kept
    first = (ranked.gather(-1, chosen) > 1.5) | (torch.arange(room, device=kept.device) == 0)
    keep = first | (before < 1.0 - rule.tolerance)
    ids, order = torch.where(keep, chosen, draft_size).sort(dim=-1)
    keep = ids < draft_size
    probs = kept.gather(-1, order).to(torch.float16)
    held = torch.where(keep, probs, 0.0).double().sum(dim=-1)
    return SparseRows(
        probs=probs[keep],
        ids=ids[keep].to(torch.int32),
        counts=keep.sum(dim=-1, dtype=torch.int32),
        tail=(1.0 - held).clamp(min=0.0).float(),
    )


def _with_forced_first(target_probs: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
    """Scores [N, D] that rank forced ids before all others and else as the probabilities do."""
    padded = torch.nn.functional.pad(target_probs, (0, 1))
    index = torch.where(forced < 0, target_probs.shape[1], forced)
    return padded.scatter(-1, index, 2.0)[:, :-1]


def id_dtype(draft_vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The narrowest type that holds every index into the draft vocabulary."""
    return np.uint16 if draft_vocab_size <= 2**16 else np.uint32


def to_draft_index(token_ids: torch.Tensor, selected_token_ids: torch.Tensor) -> torch.Tensor:
    """Target ids [...] -> their index in the draft vocabulary, int64, -1 where they are not in it."""
    place = torch.searchsorted(selected_token_ids, token_ids).clamp(max=selected_token_ids.shape[0] - 1)
    return torch.where(selected_token_ids[place] == token_ids, place, -1)


def forced_targets(
    input_ids: NDArray[np.int32], supervised: NDArray[np.bool_], end_of_turn: int | None
) -> NDArray[np.int64]:
    """What one sample's supervised rows always keep: the next token, and the end of turn; target ids [S, 1 or 2]."""
    following = input_ids[np.flatnonzero(supervised) + 1].astype(np.int64)
    if end_of_turn is None:
        return following[:, None]
    return np.stack([following, np.full_like(following, end_of_turn)], axis=1)
