"""The entries of some rows of sparse targets, beside the logits of those rows: one after the other, or as a rectangle.

On a CPU every entry costs as much as many logits, so that rows of unequal length are never filled up to the longest. A
GPU would have to tell the host how many entries there are: there rows are rectangles, which cost next to nothing.
Symbols: r rows, D draft vocabulary, e entries of all rows, M entries of a row at most.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Entries(ABC):
    """Entries of r rows; the arrays over entries have one shape, that of `ids`."""

    ids: torch.Tensor  # int64
    probs: torch.Tensor
    tail: torch.Tensor  # [r], 0 where every token has an entry

    @abstractmethod
    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return a value of each row [r] at each of its entries."""

    @abstractmethod
    def take(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the values of a matrix [r, D] at the entries."""

    @abstractmethod
    def put(self, matrix: torch.Tensor, values: torch.Tensor | float) -> torch.Tensor:
        """Overwrite a matrix [r, D] at the entries, and return it."""

    @abstractmethod
    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over each row's entries, [r]."""

    @abstractmethod
    def top(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the largest value of each row, [r], and its id, the lowest of equals."""

    def logsumexp(self, values: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        """Return log sum exp of each row's entries, [r], whose largest are `top`."""
        return top + self.sum((values - self.of_rows(top)).exp()).log()


@dataclass(frozen=True, kw_only=True)
class FlatEntries(Entries):
    """Entries of all rows, one row after the other: [e]."""

    rows: torch.Tensor  # int64 [e], 0..r-1
    counts: torch.Tensor  # int64 [r]

    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        return values.index_select(0, self.rows)

    def take(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.reshape(-1).index_select(0, self._places(logits))

    def put(self, matrix: torch.Tensor, values: torch.Tensor | float) -> torch.Tensor:
        flat, places = matrix.view(-1), self._places(matrix)
        if isinstance(values, torch.Tensor):
            flat.index_copy_(0, places, values)
        else:
            flat.index_fill_(0, places, values)
        return matrix

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(self.counts)).index_add_(0, self.rows, values)

    def top(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.counts) == 0:
            return values.new_zeros(0), self.ids.new_zeros(0)
        top = torch.segment_reduce(values, "max", lengths=self.counts, unsafe=True)
        (tied,) = torch.where(values == self.of_rows(top))
        token = torch.full_like(self.counts, torch.iinfo(self.ids.dtype).max)
        return top, token.scatter_reduce_(0, self.rows[tied], self.ids[tied], "amin")

    def _places(self, matrix: torch.Tensor) -> torch.Tensor:
        return torch.add(self.ids, self.rows, alpha=matrix.shape[-1])


@dataclass(frozen=True, kw_only=True)
class PaddedEntries(Entries):
    """Rows as rectangles [r, M]; a shorter row repeats its last entry, so that scattering by `ids` is unambiguous."""

    present: torch.Tensor  # bool [r, M], False for repetitions

    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, None]

    def take(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.gather(-1, self.ids)

    def put(self, matrix: torch.Tensor, values: torch.Tensor | float) -> torch.Tensor:
        if isinstance(values, torch.Tensor):
            return matrix.scatter_(-1, self.ids, values)
        return matrix.scatter_(-1, self.ids, values)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return (values * self.present).sum(dim=-1)

    def top(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top = values.amax(-1, keepdim=True)  # that of a repetition is that of the entry
        return top[:, 0], self.ids.masked_fill(values != top, torch.iinfo(self.ids.dtype).max).amin(-1)


def flat_entries(
    probs: torch.Tensor, ids: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor, tail: torch.Tensor
) -> FlatEntries:
    """Return the entries `starts[i]` to `starts[i] + counts[i]` of the arrays `probs` and `ids` for each row i."""
    rows = torch.repeat_interleave(counts)
    shifts = starts - (counts.cumsum(0) - counts)
    places = torch.arange(len(rows), device=rows.device) + shifts.index_select(0, rows)
    return FlatEntries(
        ids=ids.index_select(0, places),
        probs=probs.index_select(0, places).to(tail.dtype),
        tail=tail,
        rows=rows,
        counts=counts,
    )


def padded_entries(
    probs: torch.Tensor,
    ids: torch.Tensor,
    starts: torch.Tensor,
    counts: torch.Tensor,
    tail: torch.Tensor,
    *,
    max_entries: int,
) -> PaddedEntries:
    """Return `flat_entries` as rectangles of `max_entries`, which no row exceeds."""
    order = torch.arange(max_entries, device=starts.device)
    places = starts[:, None] + torch.minimum(order, counts[:, None] - 1)
    return PaddedEntries(
        ids=ids[places], probs=probs[places].to(tail.dtype), tail=tail, present=order < counts[:, None]
    )
