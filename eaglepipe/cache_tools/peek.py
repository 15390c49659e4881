"""What a cache holds for one sample, decoded row by row, in ids and numbers; texts are the caller's."""

import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.probabilities import ROWS_AT_ONCE, TargetDistribution
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CacheError, printable

Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class PeekedRow:
    """One token and, where it is supervised, what the target says after it."""

    position: int
    token_id: int
    assistant: bool
    supervised: bool
    next_token_id: int | None  # what the text goes on with, where supervised
    target_top1: int | None
    top1_in_draft_vocab: bool
    draft_mass: float | None  # share of the target's probability that the draft vocabulary holds
    top: Top  # target ids and their probability within the draft vocabulary, largest first
    tail_mass: float | None  # with sparse supervision: mass within the draft vocabulary that no entry holds


@dataclass(frozen=True, kw_only=True)
class PeekedSample:
    """One sample and the rows that were asked for."""

    number: int
    sample: CachedSample
    rows: tuple[PeekedRow, ...]


def find_sample(cache: Cache, wanted: str) -> int:
    """The number of a sample, given as such or by its id.

    Raises:
        CacheError: there is no such sample; names the closest id.
    """
    ids = cache.index.sample_ids
    if wanted in ids:
        return ids.index(wanted)
    if wanted.isdecimal() and int(wanted) < cache.num_samples:
        return int(wanted)
    close = difflib.get_close_matches(wanted, ids, n=1, cutoff=0.3)
    hint = f"; the closest id is {close[0]!r}" if close else ""
    raise CacheError(printable(f"{cache.folder}: no sample {wanted!r}; it holds 0 to {cache.num_samples - 1}{hint}"))


def peek_sample(cache: Cache, number: int, rows: slice, *, top: int) -> PeekedSample:
    """Decode some rows of a sample; `top` tokens of each supervised one.

    Raises:
        CorruptError: the sample, or what decoding needs of the cache, is damaged.
    """
    sample = cache.read(number)
    positions = np.arange(len(sample.input_ids))[rows]
    supervised = positions[sample.supervised[positions]]
    stored = (np.cumsum(sample.supervised) - 1)[supervised]
    find = _tops if sample.sparse_counts is None else _sparse_tops
    tops = dict(zip(supervised.tolist(), find(cache, sample, stored, top), strict=True))
    tails = {} if sample.tail_mass is None else dict(zip(supervised.tolist(), sample.tail_mass[stored], strict=True))
    return PeekedSample(
        number=number,
        sample=sample,
        rows=tuple(
            _row(sample, position, tops.get(position, ()), tails.get(position)) for position in positions.tolist()
        ),
    )


def _tops(cache: Cache, sample: CachedSample, stored: NDArray[np.int64], top: int) -> list[Top]:
    if len(stored) == 0:
        return []
    distribution, ids = TargetDistribution(cache), cache.vocab.selected_token_ids
    found: list[Top] = []
    for start in range(0, len(stored), ROWS_AT_ONCE):
        best = distribution.of(sample, stored[start : start + ROWS_AT_ONCE]).topk(min(top, len(ids)), dim=-1)
        found += [
            tuple(zip(ids[index].tolist(), probs.tolist(), strict=True))
            for probs, index in zip(best.values, best.indices, strict=True)
        ]
    return found


def _sparse_tops(cache: Cache, sample: CachedSample, stored: NDArray[np.int64], top: int) -> list[Top]:
    """The largest of the stored entries, which may be fewer than `top`."""
    ids = cache.vocab.selected_token_ids.numpy()
    found: list[Top] = []
    for row in stored.tolist():
        index, probs = sample.sparse_row(row)
        best = np.argsort(-probs, kind="stable")[:top]
        found.append(tuple(zip(ids[index[best]].tolist(), probs[best].tolist(), strict=True)))
    return found


def _row(sample: CachedSample, position: int, top: Top, tail: np.float32 | None) -> PeekedRow:
    supervised = bool(sample.supervised[position])
    return PeekedRow(
        position=position,
        token_id=int(sample.input_ids[position]),
        assistant=bool(sample.loss_mask[position]),
        supervised=supervised,
        next_token_id=int(sample.input_ids[position + 1]) if supervised else None,
        target_top1=int(sample.target_top1[position]) if supervised else None,
        top1_in_draft_vocab=bool(sample.position_mask[position]),
        draft_mass=float(sample.draft_mass[position]) if supervised else None,
        top=top,
        tail_mass=None if tail is None else float(tail),
    )
