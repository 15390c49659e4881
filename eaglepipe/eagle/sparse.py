"""Supervision by the target's few likely tokens and one bucket for all others; rows stay ragged, never dense.

A row's loss is -(sum_i p_i log q_i + tail · log q_tail): the kept tokens' gradient is q_i - p_i whatever was left out.
Symbols: S rows, E entries of all rows, D draft vocabulary, r rows of a chunk, M entries of a row at most.
"""

from dataclasses import dataclass

import torch

from eaglepipe.eagle.losses import soft_cross_entropy
from eaglepipe.eagle.row_ops import row_blocks, softmax_in_place


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """S rows of a distribution over the draft vocabulary; row s has entries row_offsets[s]..row_offsets[s + 1].

    Every row has an entry at least, and no token twice.
    """

    probs: torch.Tensor  # [E], any float dtype, in any order inside a row
    ids: torch.Tensor  # int64 [E], 0..D-1
    row_offsets: torch.Tensor  # int64 [S + 1], from 0 to E
    tail: torch.Tensor  # float32 [S], mass of all tokens that have no entry


@dataclass(frozen=True, kw_only=True)
class _Entries:
    """Rows as rectangles [r, M]; a shorter row repeats its last entry, so that scattering by `ids` is unambiguous."""

    ids: torch.Tensor
    probs: torch.Tensor
    present: torch.Tensor  # bool, False for repetitions
    tail: torch.Tensor  # [r], 0 where every token has an entry


@dataclass(frozen=True, kw_only=True)
class SparseRows:
    """What the head's loss asks of sparse targets: row losses and the logits' gradient, for a chunk of rows."""

    targets: SparseTargets
    max_entries: int  # M

    def losses(self, logits: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses [r] and greedy tokens int64 [r] of target rows `rows`; the gradient replaces `logits` [r, D].

        The tail gets a softmax of its own, over logits without the kept ones: no difference of nearly equal numbers,
        however small the tail's share.
        """
        kept = _entries(self.targets, rows, self.max_entries, logits)
        kept_logits = logits.gather(-1, kept.ids)
        shares = logits.scatter_(-1, kept.ids, -torch.inf)
        tail_log, tail_top, tail_token = _softmax_in_blocks(shares)
        present_logits = kept_logits.masked_fill(~kept.present, -torch.inf)
        log_partition = torch.logaddexp(present_logits.logsumexp(-1), tail_log)
        probs = kept.probs * kept.present
        mass = probs.sum(-1) + kept.tail
        losses = (probs * (log_partition[:, None] - kept_logits)).sum(-1)
        losses += torch.where(kept.tail > 0, kept.tail * (log_partition - tail_log), 0.0)
        shares.mul_((mass * (tail_log - log_partition).exp() - kept.tail)[:, None])
        shares.scatter_(-1, kept.ids, mass[:, None] * (kept_logits - log_partition[:, None]).exp() - kept.probs)
        return losses, _greedy(present_logits, kept.ids, tail_top, tail_token)


def _softmax_in_blocks(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    parts = zip(*(softmax_in_place(logits[block]) for block in row_blocks(logits)), strict=True)
    return tuple(torch.cat(part) for part in parts)


def _greedy(
    kept_logits: torch.Tensor, kept_ids: torch.Tensor, tail_top: torch.Tensor, tail_token: torch.Tensor
) -> torch.Tensor:
    kept_top, kept_token = _top(kept_logits, kept_ids)
    tied = torch.minimum(kept_token, tail_token)
    return torch.where(tail_top > kept_top, tail_token, torch.where(tail_top == kept_top, tied, kept_token))


def _top(values: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row of values [r, M] and its id, the lowest of equals."""
    top = values.amax(-1, keepdim=True)
    return top[:, 0], ids.masked_fill(values != top, torch.iinfo(ids.dtype).max).amin(-1)


def _entries(targets: SparseTargets, rows: torch.Tensor, max_entries: int, like: torch.Tensor) -> _Entries:
    """Rows `rows` [r] over a vocabulary of like.shape[-1], probabilities in the dtype of `like`."""
    starts = targets.row_offsets.index_select(0, rows)
    counts = targets.row_offsets.index_select(0, rows + 1) - starts
    order = torch.arange(max_entries, device=rows.device)
    places = starts[:, None] + torch.minimum(order, counts[:, None] - 1)
    return _Entries(
        ids=targets.ids[places],
        probs=targets.probs[places].to(like.dtype),
        present=order < counts[:, None],
        tail=torch.where(counts < like.shape[-1], targets.tail.index_select(0, rows), 0.0).to(like.dtype),
    )


def top_tokens(targets: SparseTargets, max_entries: int) -> torch.Tensor:
    """Each row's entry of the highest probability, the lower id of equals: int64 [S]."""
    rows = torch.arange(len(targets.tail), device=targets.tail.device)
    entries = _entries(targets, rows, max_entries, targets.probs[None])
    return _top(entries.probs, entries.ids)[1]


@dataclass(frozen=True, kw_only=True)
class DenseTargets:
    """Targets written out, as the reference learns from them; without a tail, every token is kept."""

    probs: torch.Tensor  # [..., D], 0 where not kept
    kept: torch.Tensor | None = None  # bool [..., D]
    tail: torch.Tensor | None = None  # [...]


def densify(targets: SparseTargets, draft_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities [S, D], kept tokens bool [S, D] and tail [S] of sparse targets over D = draft_size tokens."""
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
