"""Sparse supervision: the few entries that hold nearly all of a distribution, and the mass of the others as one number.

N rows, D draft vocabulary, F ids that are always kept, C the most entries a row may have, E entries of all rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows, RowCodec
from eaglepipe.cache.supervision.columns import NUM_ENTRIES, Columns
from eaglepipe.cache.supervision.dense import probability_codec
from eaglepipe.target_head import TargetHead

SPARSE_CODEC = "fp16"


@dataclass(frozen=True, kw_only=True)
class SparseRule:
    """The cut of a row: entries for 1 - tolerance of the mass, at most `max_entries`, forced ones among them."""

    tolerance: float
    max_entries: int
    end_of_turn: int | None = None
    """Target id that is always kept, as the next token is; None: the next token alone."""

    def forced_ids(self, input_ids: NDArray[np.int32], supervised: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the target ids that each supervised row of one sample always keeps, int64 [N, F].

        Args:
            input_ids: [T].
            supervised: [T], N of them set, never the last.
        """
        following = input_ids[np.flatnonzero(supervised) + 1].astype(np.int64)
        if self.end_of_turn is None:
            return following[:, None]
        return np.stack([following, np.full_like(following, self.end_of_turn)], axis=1)

    def hints(self, _sample_id: str, input_ids: NDArray[np.int32], supervised: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return what cutting a sample's rows takes besides their probabilities: `forced_ids`."""
        return self.forced_ids(input_ids, supervised)

    def located(self, hints: torch.Tensor, selected_token_ids: torch.Tensor) -> torch.Tensor:
        """Return forced ids as indices into a draft vocabulary."""
        return to_draft_index(hints, selected_token_ids)

    def cut(self, target_probs: torch.Tensor, hints: torch.Tensor) -> "SparseRows":
        """Cut rows [N, D]; see `sparsify`."""
        return sparsify(target_probs, hints, self)


@dataclass(frozen=True, kw_only=True)
class SparseRows:
    """Kept entries, row after row, ids ascending within a row, on the distribution's device."""

    probs: torch.Tensor  # float16 [E]
    ids: torch.Tensor  # integer [E], index into the draft vocabulary
    counts: torch.Tensor  # int32 [N]
    tail: torch.Tensor  # float32 [N], 1 - what the kept float16 entries hold, never below 0
    top_first: bool = False  # whether a row's first entry is its most probable token's, and the others ascend

    def rows(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], np.float32]]:
        """Yield each row's indices into the draft vocabulary, their probabilities, and its tail."""
        sizes = self.counts.tolist()
        ids, probs = (torch.split(column, sizes) for column in (self.ids.long(), self.probs.float()))
        for row_ids, row_probs, tail in zip(ids, probs, self.tail.numpy(), strict=True):
            yield row_ids.numpy(), row_probs.numpy(), tail


class RowCut(Protocol):
    """A rule that makes entries of distributions [N, D], and takes a hint for each row."""

    def cut(self, target_probs: torch.Tensor, hints: torch.Tensor) -> SparseRows: ...


@dataclass(frozen=True, kw_only=True)
class SparseSupervision:
    """Entries of one probability each."""

    codec: RowCodec

    name = "sparse"
    column = "target_probs"
    stores_probabilities = True
    convertible_to = ("sparse",)
    codec_setting = None
    settings: tuple[str, ...] = ("tolerance", "max_entries")

    @classmethod
    def of(cls, codec: str, *, hidden_size: int, draft_vocab_size: int) -> "SparseSupervision":
        """Raises CacheError if the codec is not one of probabilities."""
        return cls(codec=probability_codec(codec, 1))

    @property
    def shape(self) -> list[int | str]:
        """The shape of a row, whose length is its own."""
        return ["entries"]

    def encode(self, rows: torch.Tensor, hints: torch.Tensor, rule: RowCut) -> Columns:
        """Cut and encode probabilities [N, D]; arguments as those of `RowCut.cut`."""
        entries = rule.cut(rows, hints)
        return {**self.encoded_entries(entries), NUM_ENTRIES: entries.counts, "tail_mass": entries.tail}

    def encoded_entries(self, entries: SparseRows) -> Columns:
        """Encode the probabilities and ids of entries."""
        return {self.column: self.codec.encode(entries.probs[:, None]).payload, "target_ids": entries.ids}

    def finite_rows(self, columns: Columns) -> torch.Tensor:
        """Return which rows have finite entries alone, bool [N]."""
        counts = columns[NUM_ENTRIES]
        row_of_entry = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        finite = torch.ones(len(counts), dtype=torch.bool, device=counts.device)
        finite[row_of_entry[~torch.isfinite(self.probabilities(columns))]] = False
        return finite

    def decode(self, columns: Columns, head: TargetHead | None) -> SparseRows:
        """Return the entries as stored."""
        return SparseRows(
            probs=self.probabilities(columns),
            ids=columns["target_ids"].long(),
            counts=columns[NUM_ENTRIES],
            tail=columns["tail_mass"],
        )

    def probabilities(self, columns: Columns) -> torch.Tensor:
        """Return the probability of each entry as stored, [E]."""
        return self.codec.decode(EncodedRows(payload=columns[self.column]))[:, 0]


@torch.no_grad()
def sparsify(target_probs: torch.Tensor, forced: torch.Tensor, rule: SparseRule) -> SparseRows:
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
    ranked = with_forced_first(target_probs, forced)
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


def with_forced_first(target_probs: torch.Tensor, forced: torch.Tensor) -> torch.Tensor:
    """Scores [N, D] that rank forced ids before all others and else as the probabilities do."""
    padded = torch.nn.functional.pad(target_probs, (0, 1))
    index = torch.where(forced < 0, target_probs.shape[1], forced)
    return padded.scatter(-1, index, 2.0)[:, :-1]


def id_dtype(draft_vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the narrowest type that holds every index into the draft vocabulary."""
    return np.uint16 if draft_vocab_size <= 2**16 else np.uint32


def to_draft_index(token_ids: torch.Tensor, selected_token_ids: torch.Tensor) -> torch.Tensor:
    """Target ids [...] -> their index in the draft vocabulary, int64, -1 if they are not in it."""
    index = torch.searchsorted(selected_token_ids, token_ids).clamp(max=selected_token_ids.shape[0] - 1)
    return torch.where(selected_token_ids[index] == token_ids, index, -1)
