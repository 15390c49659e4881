"""Supervision by the target's likely tokens and one bucket for all others; rows stay ragged, never dense.

A row's loss is -(sum_i p_i log q_i + tail · log q_tail): the kept tokens' gradient is q_i - p_i whatever was left out.
Symbols: S rows, E entries of all rows, D draft vocabulary, r rows of a chunk, M entries of a row at most.
"""

from dataclasses import dataclass, replace

import torch

from eaglepipe.eagle.kernels.row_ops import RowLosses, RowSoftmax
from eaglepipe.eagle.losses import acceptance, overlap, soft_cross_entropy
from eaglepipe.eagle.unroll.sparse_entries import Entries, flat_entries, padded_entries


@dataclass(frozen=True, kw_only=True)
class SparseLayout:
    """Row bounds and id range of sparse targets, on the host."""

    row_offsets: torch.Tensor  # int64 [S + 1]
    id_bounds: torch.Tensor  # int64 [2], the lowest and the highest id; empty without entries

    @property
    def max_entries(self) -> int:
        """Entries of the longest row, at least 1."""
        return int(self.row_offsets.diff().max()) if len(self.row_offsets) > 1 else 1


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """S rows of a distribution over the draft vocabulary; row s has entries row_offsets[s]..row_offsets[s + 1].

    Every row has an entry at least, and no token twice.
    """

    probs: torch.Tensor  # [E], any float dtype, in any order inside a row
    ids: torch.Tensor  # int64 [E], 0..D-1
    row_offsets: torch.Tensor  # int64 [S + 1], from 0 to E
    tail: torch.Tensor  # float32 [S], mass of all tokens that have no entry
    layout: SparseLayout | None = None  # the same bounds on the host, if they were made there
    top_first: bool = False
    """Whether each row's first entry is that of its most probable token, as in rows that were drawn."""

    def with_layout(self) -> "SparseTargets":
        """Fetch the layout, unless it is there; the host then waits for the device."""
        if self.layout is not None:
            return self
        id_bounds = torch.stack(self.ids.aminmax()) if len(self.ids) else self.ids
        return replace(self, layout=SparseLayout(row_offsets=self.row_offsets.cpu(), id_bounds=id_bounds.cpu()))

    def cut(self, rows: slice) -> "SparseTargets":
        """Return some rows, one after the other, without copies of their entries."""
        layout = self.with_layout().layout
        assert layout is not None
        offsets = layout.row_offsets[rows.start : rows.stop + 1]
        first, end = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
        return SparseTargets(
            probs=self.probs[first:end],
            ids=self.ids[first:end],
            row_offsets=self.row_offsets[rows.start : rows.stop + 1] - first,
            tail=self.tail[rows],
            layout=SparseLayout(row_offsets=offsets - first, id_bounds=layout.id_bounds),
            top_first=self.top_first,
        )


@dataclass(frozen=True, kw_only=True)
class SparseRows:
    """Sparse targets as the head's loss reads them: row losses and the logits' gradient, for a chunk of rows."""

    targets: SparseTargets
    max_entries: int  # M

    @classmethod
    def of(cls, targets: SparseTargets) -> "SparseRows":
        """Take M from the targets' layout."""
        layout = targets.with_layout().layout
        assert layout is not None
        return cls(targets=targets, max_entries=layout.max_entries)

    def losses(self, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
        """As `TargetRows`."""
        split = split_kept(self, logits, rows)
        kept, mass = split.kept, split.mass
        gradient = split.tail.scaled(mass * split.tail_share() - kept.tail, dtype)
        kept.put(gradient, (kept.of_rows(mass) * split.kept_shares() - kept.probs).to(dtype))
        return RowLosses(losses=split.cross_entropy(), predicted=split.predicted, gradient=gradient)

    def top_tokens(self) -> torch.Tensor:
        """Return each row's most probable token, the lower id of equals: int64 [S]."""
        targets = self.targets
        if targets.top_first:
            return targets.ids[targets.row_offsets[:-1]]
        rows = torch.arange(len(targets.tail), device=targets.tail.device)
        entries = _entries(targets, rows, self.max_entries, targets.probs[None])
        return entries.top(entries.probs)[1]


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """Rows of logits split into the kept tokens and the tail; logs are natural."""

    kept: Entries
    kept_logits: torch.Tensor  # at the entries
    mass: torch.Tensor  # [r], of kept tokens and tail together: 1 but for rounding
    log_partition: torch.Tensor  # [r]
    tail: RowSoftmax  # over its own tokens: kept ones have 0 in it; a row without others has no numbers
    predicted: torch.Tensor  # int64 [r], the greedy token of all

    def kept_shares(self) -> torch.Tensor:
        """Return the draft's probabilities of the kept tokens, at the entries."""
        return (self.kept_logits - self.kept.of_rows(self.log_partition)).exp()

    def tail_share(self) -> torch.Tensor:
        """Return the draft's probability of the tail bucket, [r]."""
        return (self.tail.log_partition - self.log_partition).exp()

    def cross_entropy(self) -> torch.Tensor:
        """Return `bucketed_cross_entropy` of each row, [r]."""
        kept, tail = self.kept, self.kept.tail
        losses = kept.sum(kept.probs * (kept.of_rows(self.log_partition) - self.kept_logits))
        return losses + torch.where(tail > 0, tail * (self.log_partition - self.tail.log_partition), 0.0)


def split_kept(targets: SparseRows, logits: torch.Tensor, rows: torch.Tensor) -> SplitRows:
    """Split `logits` [r, D] into the entries of target rows `rows` [r] and the tail.

    `logits` are overwritten by the tail's softmax, over its own tokens: no difference of nearly equal numbers, however
    small the tail's share.
    """
    kept = _entries(targets.targets, rows, targets.max_entries, logits)
    kept_logits = kept.take(logits)
    tail = RowSoftmax.of(kept.put(logits, -torch.inf))
    top, token = kept.top(kept_logits)
    tied = torch.where(tail.top == top, torch.minimum(token, tail.token), token)
    return SplitRows(
        kept=kept,
        kept_logits=kept_logits,
        mass=kept.sum(kept.probs) + kept.tail,
        log_partition=torch.logaddexp(kept.logsumexp(kept_logits, top), tail.log_partition),
        tail=tail,
        predicted=torch.where(tail.top > top, tail.token, tied),
    )


def _entries(targets: SparseTargets, rows: torch.Tensor, max_entries: int, like: torch.Tensor) -> Entries:
    """Return rows `rows` [r] over a vocabulary of like.shape[-1], probabilities in the dtype of `like`."""
    starts = targets.row_offsets.index_select(0, rows)
    counts = targets.row_offsets.index_select(0, rows + 1) - starts
    tail = torch.where(counts < like.shape[-1], targets.tail.index_select(0, rows), 0.0).to(like.dtype)
    if like.device.type == "cpu":
        return flat_entries(targets.probs, targets.ids, starts, counts, tail)
    return padded_entries(targets.probs, targets.ids, starts, counts, tail, max_entries=max_entries)


@dataclass(frozen=True, kw_only=True)
class DenseTargets:
    """Targets in dense form, as the reference reads them; without a tail, every token is kept."""

    probs: torch.Tensor  # [..., D], 0 where not kept
    kept: torch.Tensor | None = None  # bool [..., D]
    tail: torch.Tensor | None = None  # [...]
    first: torch.Tensor | None = None  # int64 [...], the most probable token if `probs` do not tell it

    @property
    def top_tokens(self) -> torch.Tensor:
        """The target's greedy draft tokens, int64 [...]."""
        return self.probs.argmax(dim=-1) if self.first is None else self.first


def densify(targets: SparseTargets, draft_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return probabilities [S, D], kept tokens bool [S, D] and tail [S] of targets over D = draft_size tokens."""
    rows = torch.repeat_interleave(targets.row_offsets.diff())
    probs = targets.probs.new_zeros(len(targets.tail), draft_size)
    probs[rows, targets.ids] = targets.probs
    kept = torch.zeros_like(probs, dtype=torch.bool)
    kept[rows, targets.ids] = True
    return probs, kept, targets.tail


def bucketed_cross_entropy(logits: torch.Tensor, targets: DenseTargets) -> torch.Tensor:
    """-(sum_kept p_i log q_i + tail · log q_tail), q = softmax(logits), q_tail = 1 - sum_kept q_i: [..., D] -> [...].

    Plainly, in float32 at least. A tail without tokens counts for nothing.
    """
    if targets.kept is None or targets.tail is None:
        return soft_cross_entropy(logits, targets.probs)
    log_q = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    has_tail = ~targets.kept.all(dim=-1)
    log_q_tail = log_q.masked_fill(targets.kept & has_tail[..., None], -torch.inf).logsumexp(dim=-1)
    tail = torch.where(has_tail, targets.tail, 0.0)
    return -(targets.probs.to(log_q.dtype) * log_q).sum(dim=-1) - tail * log_q_tail


def bucketed_acceptance(logits: torch.Tensor, targets: DenseTargets, draft_mass: torch.Tensor) -> torch.Tensor:
    """sum_kept min(m p_i, q_i) + min(m tail, q_tail), m the mass [...] of the draft vocabulary: [..., D] -> [...].

    Plainly, in float32 at least. All tokens of the tail are one bucket, whose overlap is at least the sum of theirs:
    with a tail this is an upper bound of alpha, and without one it is `acceptance`.
    """
    if targets.kept is None or targets.tail is None:
        return acceptance(logits, targets.probs, draft_mass)
    q = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    mass = draft_mass.to(q.dtype)
    q_tail = q.masked_fill(targets.kept, 0.0).sum(dim=-1)
    tail = torch.where(targets.kept.all(dim=-1), 0.0, targets.tail.to(q.dtype)) * mass
    kept = overlap(targets.probs.to(q.dtype) * mass[..., None], q.masked_fill(~targets.kept, 0.0))
    return kept.sum(dim=-1) + overlap(tail, q_tail)
