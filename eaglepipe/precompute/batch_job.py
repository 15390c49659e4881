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
from eaglepipe.cache.supervision.columns import Columns, HostColumns, split_rows, to_host
from eaglepipe.cache.supervision.kind import SupervisionKind
from eaglepipe.cache.supervision.sparse import SparseRule, to_draft_index
from eaglepipe.cache.types import CachedSample
from eaglepipe.chat.tokens import TokenSample, supervised_tokens
from eaglepipe.target.model import TargetModel
from eaglepipe.target.supervision import supervise
from eaglepipe.vocab import DraftVocab


@dataclass(frozen=True, kw_only=True)
class CapturedBatch:
    """Encoded columns of a batch's real tokens (N) and supervised tokens (S), in host memory, sample after sample."""

    tokens: list[TokenSample]
    finite: NDArray[np.bool_]  # [N] as stored
    faults: dict[str, NDArray[np.bool_]]  # [N] by what is not finite: the target, or a codec
    columns: dict[str, NDArray[Any] | None]  # [N, ...] by the names of `CachedSample`
    supervision: HostColumns  # of S rows

    @property
    def num_refused(self) -> int:
        return sum(not self.finite[rows].all() for rows in self._spans())

    def samples(self) -> Iterator[CachedSample | tuple[str, str]]:
        """Yield each sample as the cache stores it, or (id, reason) if its numbers are not finite."""
        supervision = split_rows(
            self.supervision, [int(supervised_tokens(sample.turns).sum()) for sample in self.tokens]
        )
        for sample, rows, supervised_columns in zip(self.tokens, self._spans(), supervision, strict=True):
            if not self.finite[rows].all():
                yield sample.sample_id, self._reason(rows)
                continue
            columns: dict[str, Any] = {name: None if c is None else c[rows] for name, c in self.columns.items()}
            yield CachedSample(
                sample_id=sample.sample_id,
                source=sample.source,
                input_ids=sample.input_ids,
                loss_mask=sample.turns > 0,
                supervision=supervised_columns,
                **columns,
            )

    def _reason(self, rows: slice) -> str:
        """Return the first fault of a sample: the target's own before those that only encoding made."""
        fault, broken = next((fault, mask[rows]) for fault, mask in self.faults.items() if mask[rows].any())
        return f"{fault} from token {int(np.argmax(broken))} on"

    def _spans(self) -> Iterator[slice]:
        """The rows of each sample."""
        start = 0
        for sample in self.tokens:
            yield slice(start, start + len(sample.input_ids))
            start += len(sample.input_ids)


@torch.no_grad()
def capture_batch(
    model: TargetModel,
    samples: list[TokenSample],
    vocab: DraftVocab,
    *,
    spec: ShardSpec,
    rule: SparseRule,
    head_chunk_rows: int,
) -> CapturedBatch:
    """Run the target over `samples` (one batch) and encode the columns of the cache.

    Args:
        rule: the cut of sparse supervision; other kinds ignore it.
        head_chunk_rows: supervised rows that go through the lm_head at once.
    """
    device, kind = model.device, spec.kind
    states = model.capture_tokens([sample.input_ids for sample in samples])
    aux, last_hidden = states.aux, states.last_hidden
    masks = [supervised_tokens(sample.turns) for sample in samples]
    supervised = np.concatenate(masks)
    supervised_rows = torch.from_numpy(np.flatnonzero(supervised)).to(device)
    supervised_hidden = last_hidden.index_select(0, supervised_rows)
    forced_ids = [rule.forced_ids(sample.input_ids, mask) for sample, mask in zip(samples, masks, strict=True)]
    forced = torch.from_numpy(np.concatenate(forced_ids)).to(device)
    forced = to_draft_index(forced, vocab.selected_token_ids.to(device))

    def encode_chunk(probs: torch.Tensor, rows: slice) -> Columns:
        return kind.encode(probs, forced[rows], rule)

    encode = encode_chunk if kind.stores_probabilities else None
    answers = supervise(model.head_logits, supervised_hidden, vocab, head_chunk_rows, encode=encode)
    columns, every_row = answers.columns, None
    if spec.last_hidden == "all":
        every_row = spec.rows.encode(last_hidden).payload
        columns = {kind.column: every_row.index_select(0, supervised_rows)}
    elif not kind.stores_probabilities:
        columns = kind.encode(supervised_hidden, forced, rule)

    # What is encoded decides: a narrow type may overflow where the target did not.
    encoded_aux = spec.aux.encode(aux)
    by_target = _finite_rows(aux) & _finite_rows(last_hidden)
    by_target[supervised_rows] &= answers.finite
    by_aux_codec = _finite_rows(spec.aux.decode(encoded_aux))
    by_codec = torch.ones_like(by_target)
    by_codec[supervised_rows] = kind.finite_rows(columns)
    if every_row is not None:
        by_codec &= _finite_rows(spec.rows.decode(EncodedRows(payload=every_row)))
    dtype = str(aux.dtype).removeprefix("torch.")
    faults = {
        f"the target's states or logits ({dtype}) are not finite": ~by_target,
        f"codec {spec.aux_codec} of cache.aux_codec overflows": ~by_aux_codec,
        f"codec {spec.supervision_codec} of {_codec_setting(kind)} overflows": ~by_codec,
    }
    token_columns = {
        "supervised": supervised,
        "position_mask": _scatter(supervised, answers.position_mask, False),
        "target_top1": _scatter(supervised, answers.target_top1, -1),
        "draft_mass": _scatter(supervised, answers.draft_mass, 0.0),
        "aux_payload": encoded_aux.payload.cpu().numpy(),
        "aux_scales": None if encoded_aux.scales is None else encoded_aux.scales.cpu().numpy(),
        "last_hidden_payload": None if every_row is None else every_row.cpu().numpy(),
    }
    broken = {fault: mask.cpu().numpy() for fault, mask in faults.items()}
    return CapturedBatch(
        tokens=samples,
        finite=~np.logical_or.reduce(list(broken.values())),
        faults=broken,
        columns=token_columns,
        supervision=to_host(columns),
    )


def _codec_setting(kind: SupervisionKind) -> str:
    return f"cache.{kind.codec_setting}" if kind.codec_setting else "the supervision"


def _finite_rows(rows: torch.Tensor) -> torch.Tensor:
    """bool [N] of rows [N, ...]."""
    return torch.isfinite(rows).flatten(1).all(dim=1)


def _scatter(supervised: NDArray[np.bool_], values: torch.Tensor, elsewhere: float) -> NDArray[Any]:
    """[S] values of supervised tokens -> [N], with `elsewhere` for the others."""
    compact = values.cpu().numpy()
    scattered = np.full(len(supervised), elsewhere, compact.dtype)
    scattered[supervised] = compact
    return scattered
