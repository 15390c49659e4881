"""One batch through the target: pad, capture, supervise, encode on the device, and hand the samples to the writer.

Only real tokens leave the device, and only supervised rows go through the lm_head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.sparse import SparseRows, SparseRule, forced_targets, id_dtype
from eaglepipe.cache.types import CachedSample
from eaglepipe.chat.types import TokenSample, supervised_tokens
from eaglepipe.target.model import TargetModel
from eaglepipe.target.supervision import SparseRequest, supervise
from eaglepipe.vocab import DraftVocab


@dataclass(frozen=True, kw_only=True)
class SparseColumns:
    """What sparse supervision has beside its probabilities, for S supervised tokens with E entries."""

    ids: NDArray[np.uint16] | NDArray[np.uint32]  # [E]
    counts: NDArray[np.int32]  # [S]
    offsets: NDArray[np.int64]  # [S + 1]
    tail: NDArray[np.float32]  # [S]


@dataclass(frozen=True, kw_only=True)
class CapturedBatch:
    """Encoded columns of a batch's real tokens (N) and supervised tokens (S), in host memory, sample after sample."""

    tokens: list[TokenSample]
    supervised: NDArray[np.bool_]  # [N]
    finite: NDArray[np.bool_]  # [N]
    position_mask: NDArray[np.bool_]  # [N]
    target_top1: NDArray[np.int32]  # [N]
    draft_mass: NDArray[np.float32]  # [N]
    aux_payload: NDArray[np.uint8]  # [N, bytes]
    aux_scales: NDArray[np.floating] | None  # [N, scales]
    supervision_payload: NDArray[np.uint8]  # [S, bytes], sparse: [E, 2]
    sparse: SparseColumns | None
    last_hidden_payload: NDArray[np.uint8] | None = None  # [N, bytes], where all tokens' states are kept

    @property
    def num_refused(self) -> int:
        return sum(not self.finite[rows].all() for rows, _ in self._ranges())

    def samples(self) -> Iterator[CachedSample | tuple[str, str]]:
        """Each sample as the cache stores it, or (id, reason) where the target gave NaN or Inf."""
        for token_sample, (rows, supervision_rows) in zip(self.tokens, self._ranges(), strict=True):
            if not self.finite[rows].all():
                first = int(np.flatnonzero(~self.finite[rows])[0])
                yield token_sample.sample_id, f"the target's states or logits are not finite from token {first} on"
                continue
            yield CachedSample(
                sample_id=token_sample.sample_id,
                source=token_sample.source,
                input_ids=token_sample.input_ids,
                loss_mask=token_sample.turns > 0,
                supervised=self.supervised[rows],
                position_mask=self.position_mask[rows],
                target_top1=self.target_top1[rows],
                draft_mass=self.draft_mass[rows],
                aux_payload=self.aux_payload[rows],
                aux_scales=None if self.aux_scales is None else self.aux_scales[rows],
                last_hidden_payload=None if self.last_hidden_payload is None else self.last_hidden_payload[rows],
                **self._supervision(supervision_rows),
            )

    def _supervision(self, rows: slice) -> dict[str, Any]:
        if self.sparse is None:
            return {"supervision_payload": self.supervision_payload[rows]}
        entries = slice(int(self.sparse.offsets[rows.start]), int(self.sparse.offsets[rows.stop]))
        return {
            "supervision_payload": self.supervision_payload[entries],
            "sparse_ids": self.sparse.ids[entries],
            "sparse_counts": self.sparse.counts[rows],
            "tail_mass": self.sparse.tail[rows],
        }

    def _ranges(self) -> Iterator[tuple[slice, slice]]:
        row = supervision_row = 0
        for sample in self.tokens:
            rows = slice(row, row + len(sample.input_ids))
            num_supervised = int(self.supervised[rows].sum())
            yield rows, slice(supervision_row, supervision_row + num_supervised)
            row, supervision_row = rows.stop, supervision_row + num_supervised


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a cache stores what is captured."""

    spec: ShardSpec
    sparse_rule: SparseRule
    end_of_turn: int | None  # always kept in sparse supervision

    def sparse_request(self, samples: list[TokenSample]) -> SparseRequest | None:
        if self.spec.supervision != "sparse":
            return None
        forced = [
            forced_targets(sample.input_ids, supervised_tokens(sample.turns), self.end_of_turn) for sample in samples
        ]
        return SparseRequest(rule=self.sparse_rule, forced=torch.from_numpy(np.concatenate(forced)))


@torch.no_grad()
def capture_batch(
    model: TargetModel,
    samples: list[TokenSample],
    vocab: DraftVocab,
    encoding: Encoding,
    *,
    head_chunk_rows: int,
) -> CapturedBatch:
    """Run the target over `samples` (one batch) and encode what the cache keeps."""
    spec = encoding.spec
    states = model.capture_tokens([sample.input_ids for sample in samples])
    supervised = np.concatenate([supervised_tokens(sample.turns) for sample in samples])
    supervised_rows = torch.from_numpy(np.flatnonzero(supervised)).to(model.device)
    aux, last_hidden = states.aux, states.last_hidden
    supervised_hidden = last_hidden.index_select(0, supervised_rows)
    rows = supervise(
        model.head_logits,
        supervised_hidden,
        vocab,
        head_chunk_rows,
        keep_probs=spec.supervision == "dense",
        sparse=encoding.sparse_request(samples),
    )
    encoded_aux = spec.aux.encode(aux)
    finite = _finite(spec.aux.decode(encoded_aux)) & _finite(last_hidden)
    finite[supervised_rows] &= rows.finite
    all_rows = None
    if spec.last_hidden == "all":
        all_rows = spec.rows.encode(last_hidden)
        finite &= _finite(spec.rows.decode(all_rows))
        encoded_rows = EncodedRows(payload=all_rows.payload.index_select(0, supervised_rows))
    elif rows.sparse is None:
        encoded_rows = spec.rows.encode(supervised_hidden if rows.target_probs is None else rows.target_probs)
        finite[supervised_rows] &= _finite(spec.rows.decode(encoded_rows))
    else:
        encoded_rows = spec.rows.encode(rows.sparse.probs[:, None])
    return CapturedBatch(
        tokens=samples,
        supervised=supervised,
        finite=finite.cpu().numpy(),
        position_mask=_scatter(supervised, rows.position_mask, False),
        target_top1=_scatter(supervised, rows.target_top1, -1),
        draft_mass=_scatter(supervised, rows.draft_mass, 0.0),
        aux_payload=encoded_aux.payload.cpu().numpy(),
        aux_scales=None if encoded_aux.scales is None else encoded_aux.scales.cpu().numpy(),
        supervision_payload=encoded_rows.payload.cpu().numpy(),
        sparse=None if rows.sparse is None else _sparse_columns(rows.sparse, spec.draft_vocab_size),
        last_hidden_payload=None if all_rows is None else all_rows.payload.cpu().numpy(),
    )


def _sparse_columns(rows: SparseRows, draft_vocab_size: int) -> SparseColumns:
    counts = rows.counts.cpu().numpy()
    ids: NDArray[Any] = rows.ids.cpu().numpy().astype(id_dtype(draft_vocab_size))
    return SparseColumns(
        ids=ids,
        counts=counts,
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        tail=rows.tail.cpu().numpy(),
    )


def _finite(rows: torch.Tensor) -> torch.Tensor:
    """bool [N]; asked of what was encoded, since a narrow type may overflow where the target did not."""
    return torch.isfinite(rows).flatten(1).all(dim=1)


def _scatter(supervised: NDArray[np.bool_], values: torch.Tensor, elsewhere: float) -> NDArray[Any]:
    """[S] values of supervised tokens -> [N], with `elsewhere` for the others."""
    found = values.cpu().numpy()
    full = np.full(len(supervised), elsewhere, found.dtype)
    full[supervised] = found
    return full
