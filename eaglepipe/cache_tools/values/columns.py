"""The columns of one sample in two caches, decoded some rows at a time and compared.

Shapes: T tokens, A aux layers, Ht target hidden, D draft vocabulary, n rows at once.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.columns import take_rows
from eaglepipe.cache.supervision.distribution import ROWS_AT_ONCE, TargetDistribution
from eaglepipe.cache.supervision.hidden import HiddenSupervision
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.values.sums import ProbabilitySums, StateSums

_NUMBERS_AT_ONCE = 2**21


class Side:
    """One of the two caches, and what its numbers are decoded with."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self._distribution = cache, TargetDistribution(cache)
        self.hidden = cache.spec.kind if isinstance(cache.spec.kind, HiddenSupervision) else None
        self.keeps_all = cache.spec.last_hidden == "all"

    def aux(self, sample: CachedSample, rows: slice, layers: list[int]) -> torch.Tensor:
        """Return float32 [n, layers, Ht] of the boundaries in `layers`."""
        scales = None if sample.aux_scales is None else torch.from_numpy(sample.aux_scales[rows].copy())
        encoded = EncodedRows(payload=torch.from_numpy(sample.aux_payload[rows].copy()), scales=scales)
        places = [self.cache.spec.aux_layer_ids.index(layer) for layer in layers]
        return self.cache.spec.decode_aux(encoded)[:, places].float()

    def last_hidden(self, sample: CachedSample, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return float32 [n, Ht] of some supervised tokens."""
        assert self.hidden is not None
        return self.hidden.decode_rows(take_rows(sample.supervision, rows)).float()

    def every_last_hidden(self, sample: CachedSample, rows: slice) -> torch.Tensor:
        """Return float32 [n, Ht] of some tokens."""
        assert sample.last_hidden_payload is not None
        payload = torch.from_numpy(sample.last_hidden_payload[rows].copy())
        return self.cache.spec.rows.decode(EncodedRows(payload=payload)).float()

    def probabilities(self, sample: CachedSample, rows: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return float32 [n, D], and bool [n, D] of those that are stored; None if all are."""
        entries = self._distribution.sparse_rows(sample, rows)
        if entries is None:
            return self._distribution.of(sample, rows).float(), None
        size = (len(rows), self.cache.spec.draft_vocab_size)
        dense, known = torch.zeros(size), torch.zeros(size, dtype=torch.bool)
        row_of = torch.arange(len(rows)).repeat_interleave(entries.counts)
        dense[row_of, entries.ids.long()] = entries.probs.float()
        known[row_of, entries.ids.long()] = True
        return dense, known


def compare_aux(a: Side, b: Side, one: CachedSample, other: CachedSample, layers: list[int]) -> list[StateSums]:
    """Return the deviation of each boundary in `layers` over all tokens."""
    sums = [StateSums() for _ in layers]
    for rows in _slices(len(one.input_ids), len(layers) * a.cache.spec.hidden_size):
        mine, others = (side.aux(sample, rows, layers) for side, sample in ((a, one), (b, other)))
        sums = [total + StateSums.between(mine[:, i], others[:, i]) for i, total in enumerate(sums)]
    return sums


def compare_every_last_hidden(a: Side, b: Side, one: CachedSample, other: CachedSample) -> StateSums:
    """Return the deviation of the last hidden states of all tokens."""
    total = StateSums()
    for rows in _slices(len(one.input_ids), a.cache.spec.hidden_size):
        total += StateSums.between(a.every_last_hidden(one, rows), b.every_last_hidden(other, rows))
    return total


def compare_supervision(
    a: Side, b: Side, one: CachedSample, other: CachedSample, *, probabilities: bool
) -> tuple[StateSums, ProbabilitySums]:
    """Compare the tokens that are supervised in both: last hidden states where both have them, and distributions.

    Args:
        probabilities: whether the two draft vocabularies are the same.
    """
    states, distributions = StateSums(), ProbabilitySums()
    mine, others = _common_rows(one, other)
    for start in range(0, len(mine), ROWS_AT_ONCE):
        chunk = slice(start, start + ROWS_AT_ONCE)
        if a.hidden is not None and b.hidden is not None:
            states += StateSums.between(a.last_hidden(one, mine[chunk]), b.last_hidden(other, others[chunk]))
        if probabilities:
            distributions += _compare_probabilities(
                a.probabilities(one, mine[chunk]), b.probabilities(other, others[chunk])
            )
    return states, distributions


def _compare_probabilities(
    a: tuple[torch.Tensor, torch.Tensor | None], b: tuple[torch.Tensor, torch.Tensor | None]
) -> ProbabilitySums:
    """Compare what both store; of sparse rows, all other tokens together are one more outcome."""
    known = [mask for mask in (a[1], b[1]) if mask is not None]
    if not known:
        return ProbabilitySums.between(a[0], b[0])
    both = torch.stack(known).all(dim=0)
    pair = []
    for values, _ in (a, b):
        kept = torch.where(both, values, 0.0).double()
        pair.append(torch.cat([kept, (1.0 - kept.sum(dim=-1, keepdim=True)).clamp(min=0.0)], dim=-1))
    return ProbabilitySums.between(*pair)


def _common_rows(one: CachedSample, other: CachedSample) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers, among the supervised tokens of each, of the tokens that are supervised in both."""
    both = one.supervised & other.supervised
    numbers = ((np.cumsum(sample.supervised) - 1)[both] for sample in (one, other))
    first, second = (values.astype(np.int64) for values in numbers)
    return first, second


def _slices(tokens: int, width: int) -> Iterator[slice]:
    rows = max(1, _NUMBERS_AT_ONCE // width)
    return (slice(start, start + rows) for start in range(0, tokens, rows))
