"""Conversion of one sample at a time from a cache's encoding to another's, with the error that this makes.

N supervised rows, n of them at once, D draft vocabulary, V target vocabulary, Ht target hidden.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.columns import Columns, concatenate_rows, take_rows, to_host
from eaglepipe.cache.supervision.distribution import ROWS_AT_ONCE, full_head
from eaglepipe.cache.supervision.kind import EntryRule
from eaglepipe.cache.supervision.sparse import SparseRows, SparseRule, SparseSupervision
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.deviation import Deviation, Divergence, RecodeSums
from eaglepipe.target_head import TargetHead, compute_draft_mass
from eaglepipe.vocab import DraftVocab


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Some supervised rows in the new encoding."""

    columns: Columns
    sums: RecodeSums
    finite: bool


class Reencoder:
    """Converts samples of `cache` to `spec`; holds the head rows that this takes.

    Args:
        vocab: the new draft vocabulary, if it changes; only hidden supervision can follow.
        rule: the choice of entries, if supervision becomes sparse or sampled; entries that there are, are carried over.

    Raises:
        CacheError: another draft vocabulary needs head rows that the cache does not have.
    """

    def __init__(
        self,
        cache: Cache,
        spec: ShardSpec,
        tensors: dict[str, torch.Tensor],
        *,
        vocab: DraftVocab | None,
        rule: EntryRule | None,
    ) -> None:
        old = cache.spec
        self._old, self._new, self._vocab = old, spec, vocab
        self._draft_ids = (vocab or cache.vocab).selected_token_ids
        self._rule: EntryRule = rule or SparseRule(tolerance=0.0, max_entries=spec.draft_vocab_size)
        self._same_aux = spec.aux_codec == old.aux_codec
        self._same_rows = (spec.supervision, spec.supervision_codec) == (old.supervision, old.supervision_codec)
        self._full_head: TargetHead | None = None
        self._head: TargetHead | None = None
        if vocab is not None:
            self._full_head = full_head(cache, tensors)
            self._head = self._full_head.select(self._draft_ids)
        elif not old.kind.stores_probabilities and not self._same_rows:
            self._head = TargetHead.from_tensors(tensors, cache.head).to("cpu")

    @torch.no_grad()
    def convert(self, sample: CachedSample) -> tuple[CachedSample | None, RecodeSums]:
        """Return the sample in the new encoding and its errors; None if the new encoding cannot hold its numbers."""
        aux, aux_sums, aux_finite = self._aux(sample)
        rows, row_sums, rows_finite = self._rows(sample)
        last_hidden, last_hidden_finite = self._last_hidden(sample)
        if not (aux_finite and rows_finite and last_hidden_finite):
            return None, RecodeSums()
        new = replace(sample, **aux, **rows, last_hidden_payload=last_hidden)
        return new, aux_sums + row_sums + _coverage(sample, new)

    def _aux(self, sample: CachedSample) -> tuple[dict[str, Any], RecodeSums, bool]:
        if self._same_aux:
            return {}, RecodeSums(aux=Deviation(count=sample.aux_payload.size)), True
        scales = None if sample.aux_scales is None else torch.from_numpy(sample.aux_scales.copy())
        old = self._old.decode_aux(EncodedRows(payload=torch.from_numpy(sample.aux_payload.copy()), scales=scales))
        encoded = self._new.aux.encode(old)
        new = self._new.decode_aux(encoded)
        columns = {
            "aux_payload": encoded.payload.numpy(),
            "aux_scales": None if encoded.scales is None else encoded.scales.numpy(),
        }
        return columns, RecodeSums(aux=Deviation.between(old, new)), bool(torch.isfinite(new).all())

    def _last_hidden(self, sample: CachedSample) -> tuple[np.ndarray[Any, Any] | None, bool]:
        """The states of all tokens in the new encoding, if the source keeps them and the new cache can."""
        if sample.last_hidden_payload is None or self._new.last_hidden != "all":
            return None, True
        if self._same_rows:
            return sample.last_hidden_payload, True
        payload = torch.from_numpy(sample.last_hidden_payload.copy())
        encoded = self._new.rows.encode(self._old.rows.decode(EncodedRows(payload=payload)))
        return encoded.payload.numpy(), bool(self._new.rows.finite_rows(encoded).all())

    def _rows(self, sample: CachedSample) -> tuple[dict[str, Any], RecodeSums, bool]:
        """Supervision in the new encoding."""
        if self._same_rows and self._vocab is None:
            return {}, RecodeSums(kl=Divergence(rows=int(sample.supervised.sum()))), True
        chunks = list(self._chunks(sample))
        columns = to_host(concatenate_rows([chunk.columns for chunk in chunks]))
        fields: dict[str, Any] = {}
        if self._vocab is not None:
            fields["draft_mass"] = np.zeros(len(sample.supervised), np.float32)
            fields["draft_mass"][sample.supervised] = columns.pop("draft_mass")
            in_draft = self._vocab.selected_token_mask.numpy()
            fields["position_mask"] = sample.supervised & in_draft[sample.target_top1.clip(min=0)]
        sums = sum((chunk.sums for chunk in chunks), RecodeSums())
        return {"supervision": columns, **fields}, sums, all(chunk.finite for chunk in chunks)

    def _chunks(self, sample: CachedSample) -> Iterator[_Chunk]:
        """At least one, since joined columns need their types."""
        hints = torch.from_numpy(self._rule.hints(sample.sample_id, sample.input_ids, sample.supervised))
        hints = self._rule.located(hints, self._draft_ids)
        for start in range(0, max(1, len(hints)), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(hints)))
            yield self._chunk(take_rows(sample.supervision, rows), hints[rows])

    def _chunk(self, stored: Columns, hints: torch.Tensor) -> _Chunk:
        source, kind = self._old.kind, self._new.kind
        assert not isinstance(source, SparseSupervision), "entries are carried over"
        rows = source.decode_rows(stored)
        exact = source.distribution(rows, self._head)
        values = rows if kind.name == source.name else exact
        columns = kind.encode(values, hints, self._rule)
        if isinstance(kind, SparseSupervision):
            entries = kind.decode(columns, None)
            sums = _sampled_errors(exact, entries) if entries.top_first else _sparse_errors(exact, entries)
        else:
            again = kind.decode_rows(columns)
            kl = Divergence.between(exact, kind.distribution(again, self._head))
            sums = RecodeSums(rows=Deviation.between(values, again), kl=kl)
        finite = bool(kind.finite_rows(columns).all())
        if self._full_head is not None:
            columns = {**columns, "draft_mass": compute_draft_mass(self._full_head.logits(rows), self._draft_ids)}
        return _Chunk(columns=columns, sums=sums, finite=finite)


def _sparse_errors(exact: torch.Tensor, entries: SparseRows) -> RecodeSums:
    """Errors of the stored entries, and the divergence with the tail as one more outcome."""
    row_of_entry, ids = torch.arange(len(entries.counts)).repeat_interleave(entries.counts), entries.ids
    values = exact[row_of_entry, ids]
    before, after = (torch.zeros(exact.shape[0], exact.shape[1] + 1, dtype=torch.float64) for _ in range(2))
    before[row_of_entry, ids], after[row_of_entry, ids] = values.double(), entries.probs.double()
    before[:, -1], after[:, -1] = (1.0 - before.sum(dim=-1)).clamp(min=0.0), entries.tail.double()
    kl = Divergence.between(before, after / after.sum(dim=-1, keepdim=True))
    return RecodeSums(rows=Deviation.between(values, entries.probs), kl=kl)


def _sampled_errors(exact: torch.Tensor, entries: SparseRows) -> RecodeSums:
    """Deviation of drawn entries over the whole vocabulary, which averages out; a divergence would be infinite."""
    row_of_entry = torch.arange(len(entries.counts)).repeat_interleave(entries.counts)
    drawn = torch.zeros_like(exact)
    drawn[row_of_entry, entries.ids] = entries.probs.float()
    return RecodeSums(rows=Deviation.between(exact, drawn))


def _coverage(old: CachedSample, new: CachedSample) -> RecodeSums:
    return RecodeSums(
        mass_before=float(old.draft_mass.sum(dtype=np.float64)),
        mass_after=float(new.draft_mass.sum(dtype=np.float64)),
        inside_before=int(old.position_mask.sum()),
        inside_after=int(new.position_mask.sum()),
        supervised=int(old.supervised.sum()),
    )
