"""Marks of the assistant turns on the tokens of a rendering.

A token is of a turn only if all its characters are: one that the tokenizer merged across the border was never the
assistant's to emit. T is the number of tokens.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.render import Rendered, Span
from eaglepipe.errors import TemplateError

Tokenize = Callable[[str], NDArray[np.int32]]


def mark_turns(
    rendered: Rendered, ids: NDArray[np.int32], offsets: NDArray[np.int64] | None, tokenize: Tokenize
) -> NDArray[np.int32]:
    """Return the turn of each token, int32 [T]; 0: not the assistant's.

    Args:
        ids: those of the whole text [T].
        offsets: characters [start, end) of each token [T, 2]; None: the tokenizer has none.
        tokenize: from a part of the text to its ids.

    Raises:
        TemplateError: without offsets, the tokenizer merges text across the border of a turn.
    """
    turns = np.zeros(len(ids), dtype=np.int32)
    reach = None if offsets is None else _Reach.of(offsets)
    for span in rendered.spans:
        if span.start == span.end:
            continue
        if reach is None:
            turns[_inside(span, rendered.text, ids, tokenize)] = span.turn
        else:
            window, covered = _covered(span, rendered.text, ids, reach, tokenize)
            turns[window][covered] = span.turn
    return turns


def cut_turns(
    ids: NDArray[np.int32], turns: NDArray[np.int32], *, ends: Collection[int], unfinished: Collection[int]
) -> None:
    """End each turn [T] in place at its end-of-turn token, one of `ends`; `unfinished` turns have not reached theirs.

    Nobody emits the text that a template writes after it.
    """
    closing = np.isin(ids, list(ends)) & (turns > 0) & ~np.isin(turns, list(unfinished))
    for turn in np.unique(turns[closing]):
        last = np.flatnonzero(closing & (turns == turn))[-1]
        turns[last + 1 :][turns[last + 1 :] == turn] = 0


def _covered(
    span: Span, text: str, ids: NDArray[np.int32], reach: "_Reach", tokenize: Tokenize
) -> tuple[slice, NDArray[np.bool_]]:
    """Return a slice of the tokens, and the mask of those in it that lie inside the span, by their offsets.

    Byte-level tokenizers leave a token's leading spaces out of its offsets, so a token reaches back to the end of
    the one before it; whether that gap really was its own, at the border, is asked of the tokenizer.
    """
    window = reach.window(span)
    starts, ends, first = reach.starts[window], reach.ends[window], reach.first[window].copy()
    for index in np.flatnonzero((first < span.start) & (starts >= span.start) & (ends > span.start)):
        if np.array_equal(tokenize(text[: span.start]), ids[: window.start + index]):
            first[index] = starts[index]
    return window, (first >= span.start) & (first < span.end) & (ends <= span.end)


def _inside(span: Span, text: str, ids: NDArray[np.int32], tokenize: Tokenize) -> slice:
    """Return the same as a slice, for a tokenizer without offsets: both borders must be borders of tokens."""
    bounds = []
    for end in (span.start, span.end):
        part = tokenize(text[:end])
        if not np.array_equal(part, ids[: len(part)]):
            raise TemplateError(f"the tokenizer merges text across the border of assistant turn {span.turn}")
        bounds.append(len(part))
    return slice(*bounds)


@dataclass(frozen=True, kw_only=True)
class _Reach:
    """Places in the text that the T tokens of a rendering cover, each int64 [T]."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    ends_so_far: NDArray[np.int64]  # the largest end up to each token: ascending
    first: NDArray[np.int64]  # starts, moved back to the end of the token before
    first_from_here: NDArray[np.int64]  # the smallest `first` from each token on: ascending

    @classmethod
    def of(cls, offsets: NDArray[np.int64]) -> "_Reach":
        starts, ends = offsets[:, 0], offsets[:, 1]
        ends_so_far = np.maximum.accumulate(ends)
        first = np.minimum(starts, np.concatenate(([0], ends_so_far[:-1])))
        from_here = np.minimum.accumulate(first[::-1])[::-1]
        return cls(starts=starts, ends=ends, ends_so_far=ends_so_far, first=first, first_from_here=from_here)

    def window(self, span: Span) -> slice:
        """Return the tokens besides which none touches the span, so that many spans do not scan all tokens each."""
        low = int(np.searchsorted(self.ends_so_far, span.start, side="left"))
        return slice(low, max(low, int(np.searchsorted(self.first_from_here, span.end, side="left"))))
