"""One sample of a cache decoded row by row, as ids and numbers; the caller adds the texts."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.distribution import ROWS_AT_ONCE, TargetDistribution
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CacheError, printable

Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class PeekedRow:
    """One token and, if it is supervised, the target's answer after it."""

    position: int
    token_id: int
    assistant: bool
    supervised: bool
    next_token_id: int | None  # of the text, if supervised
    target_top1: int | None
    top1_in_draft_vocab: bool
    draft_mass: float | None  # share of the target's probability that the draft vocabulary holds
    top: Top  # target ids and their probability within the draft vocabulary, largest first
    tail_mass: float | None  # with sparse supervision: mass within the draft vocabulary that no entry holds


def find_sample(cache: Cache, name: str) -> int:
    """Return the number of a sample, named by its number or its id.

    Raises:
        CacheError: there is no such sample; names the closest id.
    """
    ids = cache.index.sample_ids
    if name in ids:
        return ids.index(name)
    if name.isdecimal() and int(name) < cache.num_samples:
        return int(name)
    close = difflib.get_close_matches(name, ids, n=1, cutoff=0.3)
    hint = f"; the closest id is {close[0]!r}" if close else ""
    raise CacheError(printable(f"{cache.folder}: no sample {name!r}; it holds 0 to {cache.num_samples - 1}{hint}"))


def peek_rows(cache: Cache, sample: CachedSample, rows: slice, *, top: int) -> tuple[PeekedRow, ...]:
    """Decode some rows of a sample; `top` tokens of each supervised one.

    Raises:
        CorruptError: a file that decoding needs is damaged.
    """
    positions = np.arange(len(sample.input_ids))[rows]
    supervised = positions[sample.supervised[positions]]
    stored = (np.cumsum(sample.supervised) - 1)[supervised]
    answers = dict(zip(supervised.tolist(), _answers(cache, sample, stored, top), strict=True))
    return tuple(_row(sample, position, *answers.get(position, ((), None))) for position in positions.tolist())


def _answers(
    cache: Cache, sample: CachedSample, stored: NDArray[np.int64], top: int
) -> Iterator[tuple[Top, float | None]]:
    """The most probable tokens of some supervised rows, fewer if a sparse row has no more, and its tail."""
    if len(stored) == 0:
        return
    distribution, ids = TargetDistribution(cache), cache.vocab.selected_token_ids
    for start in range(0, len(stored), ROWS_AT_ONCE):
        rows = stored[start : start + ROWS_AT_ONCE]
        sparse = distribution.sparse_rows(sample, rows)
        if sparse is not None:
            for index, probs, tail in sparse.rows():
                first = int(sparse.top_first)  # whatever those weigh that were drawn
                best = np.append(np.arange(first), np.argsort(-probs[first:], kind="stable") + first)[:top]
                row = tuple(zip(ids[index[best]].tolist(), probs[best].tolist(), strict=True))
                yield row, None if sparse.top_first else float(tail)
        else:
            best_of = distribution.of(sample, rows).topk(min(top, len(ids)), dim=-1)
            for probs, index in zip(best_of.values, best_of.indices, strict=True):
                yield tuple(zip(ids[index].tolist(), probs.tolist(), strict=True)), None


def _row(sample: CachedSample, position: int, top: Top, tail: float | None) -> PeekedRow:
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
        tail_mass=tail,
    )
