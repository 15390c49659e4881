"""One sample at a time from a cache's encoding to another's, with the error that this makes.

S supervised rows, n of them at once, D draft vocabulary, V target vocabulary, Ht target hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.probabilities import ROWS_AT_ONCE, stored_rows
from eaglepipe.cache.supervision.sparse import (
    SparseRows,
    SparseRule,
    encode_sparse,
    forced_targets,
    id_dtype,
    to_draft_index,
)
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.deviation import Deviation, Divergence, RecodeSums
from eaglepipe.target_head import TargetHead, compute_draft_mass


@dataclass(frozen=True, kw_only=True)
class SparseCut:
    """How sparse supervision is made of distributions: the same way as from the target."""

    rule: SparseRule
    end_of_turn: int | None  # always kept, as the next token is


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Some supervised rows in the new encoding."""

    payload: torch.Tensor  # uint8 [n, bytes], sparse: [E, 2]
    draft_mass: torch.Tensor | None  # float32 [n], where the draft vocabulary is another
    sums: RecodeSums
    finite: bool
    sparse: SparseRows | None = None


class Reencoder:
    """Converts samples of `cache` to `spec`; holds the head rows that this takes."""

    def __init__(
        self,
        cache: Cache,
        spec: ShardSpec,
        tensors: dict[str, torch.Tensor],
        *,
        full_head: TargetHead | None,
        draft_ids: torch.Tensor | None,
        cut: SparseCut | None = None,
    ) -> None:
        """`full_head` and `draft_ids` int64 [D] come together, where the draft vocabulary changes.

        `cut` is for supervision that becomes sparse; what is sparse already is carried over.
        """
        self._cut, self._ids = cut, cache.vocab.selected_token_ids if draft_ids is None else draft_ids
        self._cache, self._spec = cache, spec
        self._full_head, self._draft_ids = full_head, draft_ids
        old = cache.spec
        self._same_aux = spec.aux_codec == old.aux_codec
        self._same_rows = (spec.supervision, spec.supervision_codec) == (old.supervision, old.supervision_codec)
        self._in_draft = None
        self._head: TargetHead | None = None
        if draft_ids is not None and full_head is not None:
            self._in_draft = np.zeros(spec.vocab_size, np.bool_)
            self._in_draft[draft_ids.numpy()] = True
            self._head = full_head.select(draft_ids)
        elif old.supervision == "hidden" and not self._same_rows:
            self._head = TargetHead.from_tensors(tensors, cache.head).to("cpu")

    @torch.no_grad()
    def convert(self, sample: CachedSample) -> tuple[CachedSample | None, RecodeSums]:
        """The sample in the new encoding and its errors; None where the new encoding cannot hold its numbers."""
        aux, aux_sums, finite = self._aux(sample)
        rows, row_sums, rows_finite = self._rows(sample)
        if not (finite and rows_finite):
            return None, RecodeSums()
        last_hidden, last_hidden_finite = self._last_hidden(sample)
        if not last_hidden_finite:
            return None, RecodeSums()
        new = replace(sample, **aux, **rows, **last_hidden)
        return new, aux_sums + row_sums + _coverage(sample, new)

    def _aux(self, sample: CachedSample) -> tuple[dict[str, Any], RecodeSums, bool]:
        if self._same_aux:
            return {}, RecodeSums(aux=Deviation(count=sample.aux_payload.size)), True
        scales = None if sample.aux_scales is None else torch.from_numpy(sample.aux_scales.copy())
        stored = EncodedRows(payload=torch.from_numpy(sample.aux_payload.copy()), scales=scales)
        old = self._cache.spec.decode_aux(stored)
        encoded = self._spec.aux.encode(old)
        new = self._spec.aux.decode(encoded)
        columns = {
            "aux_payload": encoded.payload.numpy(),
            "aux_scales": None if encoded.scales is None else encoded.scales.numpy(),
        }
        return columns, RecodeSums(aux=Deviation.between(old, new)), bool(torch.isfinite(new).all())

    def _last_hidden(self, sample: CachedSample) -> tuple[dict[str, Any], bool]:
        """The states of all tokens in the new encoding, where the source keeps them and the new cache can."""
        if sample.last_hidden_payload is None or self._spec.last_hidden != "all":
            return {"last_hidden_payload": None}, True
        if self._same_rows:
            return {}, True
        payload = torch.from_numpy(sample.last_hidden_payload.copy())
        encoded = self._spec.rows.encode(self._cache.spec.rows.decode(EncodedRows(payload=payload)))
        finite = bool(torch.isfinite(self._spec.rows.decode(encoded)).all())
        return {"last_hidden_payload": encoded.payload.numpy()}, finite

    def _rows(self, sample: CachedSample) -> tuple[dict[str, Any], RecodeSums, bool]:
        """Supervision in the new encoding."""
        if self._same_rows and self._full_head is None:
            return {}, RecodeSums(kl=Divergence(rows=int(sample.supervised.sum()))), True
        chunks = list(self._chunks(sample))
        sums = sum((chunk.sums for chunk in chunks), RecodeSums())
        columns: dict[str, Any] = {"supervision_payload": torch.cat([chunk.payload for chunk in chunks]).numpy()}
        cuts = [chunk.sparse for chunk in chunks if chunk.sparse is not None]
        if cuts:
            columns.update(_sparse_columns(SparseRows.joined(cuts), self._spec.draft_vocab_size))
        masses = [chunk.draft_mass for chunk in chunks if chunk.draft_mass is not None]
        if self._in_draft is not None:
            columns["draft_mass"] = np.zeros(len(sample.supervised), np.float32)
            columns["draft_mass"][sample.supervised] = torch.cat(masses).numpy()
            columns["position_mask"] = sample.supervised & self._in_draft[sample.target_top1.clip(min=0)]
        return columns, sums, all(chunk.finite for chunk in chunks)

    def _chunks(self, sample: CachedSample) -> Iterator[_Chunk]:
        """At least one, since joined columns need their types."""
        num_supervised = int(sample.supervised.sum())
        for start in range(0, max(1, num_supervised), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, num_supervised))
            stored = stored_rows(self._cache, sample, rows)
            if self._cut is None:
                yield self._chunk(stored)
            else:
                forced = forced_targets(sample.input_ids, sample.supervised, self._cut.end_of_turn)[rows]
                yield self._sparse_chunk(stored, torch.from_numpy(forced), self._cut.rule)

    def _chunk(self, stored: torch.Tensor) -> _Chunk:
        exact = self._distribution(stored)
        kept = exact if self._spec.supervision != self._cache.spec.supervision else stored
        encoded = self._spec.rows.encode(kept)
        new = self._spec.rows.decode(encoded)
        again = self._distribution(new) if self._spec.supervision == "hidden" else _normalised(new)
        return _Chunk(
            payload=encoded.payload,
            draft_mass=self._draft_mass(stored),
            sums=RecodeSums(rows=Deviation.between(kept, new), kl=Divergence.between(exact, again)),
            finite=bool(torch.isfinite(new).all()),
        )

    def _sparse_chunk(self, stored: torch.Tensor, forced: torch.Tensor, rule: SparseRule) -> _Chunk:
        exact = self._distribution(stored)
        rows = encode_sparse(exact, to_draft_index(forced, self._ids), rule)
        of_row = torch.arange(len(rows.counts)).repeat_interleave(rows.counts)
        kept, ids = exact[of_row, rows.ids.long()], rows.ids.long()
        before, after = (torch.zeros(exact.shape[0], exact.shape[1] + 1, dtype=torch.float64) for _ in range(2))
        before[of_row, ids], after[of_row, ids] = kept.double(), rows.probs.double()
        before[:, -1], after[:, -1] = (1.0 - before.sum(dim=-1)).clamp(min=0.0), rows.tail.double()
        kl = Divergence.between(before, after / after.sum(dim=-1, keepdim=True))
        return _Chunk(
            payload=self._spec.rows.encode(rows.probs[:, None]).payload,
            draft_mass=self._draft_mass(stored),
            sums=RecodeSums(rows=Deviation.between(kept, rows.probs), kl=kl),
            finite=bool(torch.isfinite(exact).all()),
            sparse=rows,
        )

    def _distribution(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored rows -> the target's distribution over the new draft vocabulary, float32 [n, D]."""
        return _normalised(stored) if self._head is None else self._head.probabilities(stored)

    def _draft_mass(self, hidden: torch.Tensor) -> torch.Tensor | None:
        if self._full_head is None or self._draft_ids is None:
            return None
        return compute_draft_mass(self._full_head.logits(hidden), self._draft_ids)


def _sparse_columns(rows: SparseRows, draft_vocab_size: int) -> dict[str, Any]:
    return {
        "sparse_ids": rows.ids.numpy().astype(id_dtype(draft_vocab_size)),
        "sparse_counts": rows.counts.numpy(),
        "tail_mass": rows.tail.numpy(),
    }


def _normalised(probs: torch.Tensor) -> torch.Tensor:
    wide = probs.float()
    return wide / wide.sum(dim=-1, keepdim=True)


def _coverage(old: CachedSample, new: CachedSample) -> RecodeSums:
    return RecodeSums(
        mass_before=float(old.draft_mass.sum(dtype=np.float64)),
        mass_after=float(new.draft_mass.sum(dtype=np.float64)),
        inside_before=int(old.position_mask.sum()),
        inside_after=int(new.position_mask.sum()),
        supervised=int(old.supervised.sum()),
    )
