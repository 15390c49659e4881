"""Sampled supervision: a few entries drawn from a distribution, whose expectation is the distribution itself.

N rows, D draft vocabulary, n entries of a row at most. Cross-entropy is linear in the target's probabilities, so that
its expectation, and that of its gradient, are those of the whole distribution (arXiv 2503.16870). Two changes to draws
with replacement take away most of their variance: tokens that would be drawn again and again are kept as they are, and
the others are drawn at even steps of their cumulative mass, from one random number a row. No token is drawn twice.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from eaglepipe.cache.codecs.rotation import split_mix
from eaglepipe.cache.supervision.columns import NUM_ENTRIES, Columns
from eaglepipe.cache.supervision.sparse import RowCut, SparseRows, SparseSupervision, with_forced_first
from eaglepipe.target_head import TargetHead

_UNIT = 2.0**30
"""Probabilities are summed as integers of this unit: exactly, in any order, on any device."""
_KEY_BITS = 53


@dataclass(frozen=True, kw_only=True)
class SampledRule:
    """The number of entries of a row at most, at least 2, and the seed of the draws."""

    draws: int
    draw_seed: int = 0

    @property
    def max_entries(self) -> int:
        """The most entries a row may have."""
        return self.draws

    def hints(self, sample_id: str, _input_ids: object, supervised: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return a random number of 53 bits for each supervised row of one sample, int64 [N].

        It is the number of SplitMix64 that follows the row's place, seeded with a hash of seed and sample: the same in
        whatever batch, process or attempt the row is encoded.

        Args:
            supervised: bool [T], N of them set.
        """
        seed = xxhash.xxh3_64_intdigest(json.dumps([self.draw_seed, sample_id]).encode())
        places = np.flatnonzero(supervised).astype(np.uint64) + np.uint64(1)
        return (split_mix(places, seed=seed) >> np.uint64(64 - _KEY_BITS)).astype(np.int64)

    def located(self, hints: torch.Tensor, _selected_token_ids: object) -> torch.Tensor:
        """Return the random numbers as they are."""
        return hints

    def cut(self, target_probs: torch.Tensor, hints: torch.Tensor) -> SparseRows:
        """Draw the entries of rows [N, D]; see `draw_entries`."""
        return draw_entries(target_probs, hints, self.draws)


@dataclass(frozen=True, kw_only=True)
class SampledSupervision(SparseSupervision):
    """Entries of one probability each, the most probable token's first, which stand for the whole distribution."""

    name = "sampled"
    convertible_to = ("sampled",)
    settings: tuple[str, ...] = ("draws", "draw_seed")

    def encode(self, rows: torch.Tensor, hints: torch.Tensor, rule: RowCut) -> Columns:
        """Draw and encode entries of probabilities [N, D]; arguments as those of `RowCut.cut`."""
        entries = rule.cut(rows, hints)
        return {**self.encoded_entries(entries), NUM_ENTRIES: entries.counts}

    def decode(self, columns: Columns, head: TargetHead | None) -> SparseRows:
        """Return the entries as stored, which leave nothing to a tail."""
        probs, counts = self.probabilities(columns), columns[NUM_ENTRIES]
        tail = torch.zeros(len(counts), device=counts.device)
        return SparseRows(probs=probs, ids=columns["target_ids"].long(), counts=counts, tail=tail, top_first=True)


@torch.no_grad()
def draw_entries(target_probs: torch.Tensor, keys: torch.Tensor, num_entries: int) -> SparseRows:
    """Draw entries whose expected probabilities, over the keys, are `target_probs`.

    The most probable token is always kept as it is, and so is each further one, from the most probable on, whose mass
    is above its share: that of all tokens not yet kept, divided by the entries that are left. These m entries are drawn
    without repetition, a token of mass p with probability m·p / rest, and each stands for rest / m.

    Args:
        target_probs: float32 [N, D], rows that sum to 1.
        keys: int64 [N], random numbers of 53 bits.
        num_entries: of a row at most; rows with less than that many likely tokens have fewer.

    Returns:
        Rows whose first entry is that of the most probable token, the lowest id of equals; the others ascend. Their
        probabilities sum to 1, but for rounding to float16.
    """
    draft_size = target_probs.shape[1]
    num_entries = min(num_entries, draft_size)
    best = target_probs.argmax(dim=-1, keepdim=True)
    top_ids = with_forced_first(target_probs, best).topk(num_entries, dim=-1).indices
    weights = (target_probs.nan_to_num(0.0, 0.0, 0.0) * _UNIT).round().to(torch.int32)
    top = weights.gather(-1, top_ids)
    order = torch.arange(num_entries, device=top.device)
    rest = weights.sum(dim=-1, keepdim=True) - (top.cumsum(-1) - top)  # from each entry on, itself included
    room = num_entries - order
    num_kept = ((top * room <= rest) & ((order > 0) | (room == 1))).to(torch.int8).argmax(dim=-1, keepdim=True)
    rest, room = rest.gather(-1, num_kept), num_entries - num_kept
    step = rest.double() / room
    is_kept = order < num_kept

    ends = weights.scatter_(-1, top_ids, torch.where(is_kept, 0, top)).cumsum(-1, dtype=torch.int32)
    place = ((order - num_kept + keys[:, None] * 2.0**-_KEY_BITS) * step).long()
    place = torch.minimum(place, rest - 1).clamp(min=0).to(torch.int32)
    drawn = torch.searchsorted(ends, place, right=True).clamp(max=draft_size - 1)
    probs = torch.where(is_kept, target_probs.gather(-1, top_ids), (step / _UNIT).float()).to(torch.float16)
    return _in_order(torch.where(is_kept, top_ids, drawn), probs)


def _in_order(ids: torch.Tensor, probs: torch.Tensor) -> SparseRows:
    """Entries [N, n] as rows: the first where it is, others by ascending id, without repetitions and zeros."""
    ranks = torch.cat([torch.full_like(ids[:, :1], -1), ids[:, 1:]], dim=1)
    ranks, places = ranks.sort(dim=-1)
    ids, probs = ids.gather(-1, places), probs.gather(-1, places)
    keep = probs > 0
    keep[:, 1:] &= ranks[:, 1:] != ranks[:, :-1]
    keep[:, 0] = True
    return SparseRows(
        probs=probs[keep],
        ids=ids[keep].to(torch.int32),
        counts=keep.sum(dim=-1, dtype=torch.int32),
        tail=torch.zeros(len(ids), device=ids.device),
        top_first=True,
    )
