"""From encoded rows on the training device to the arguments of `Eagle3TrainerModule.forward`.

The only place where stage 2 decodes; what the cache stores, the trainer module never learns.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from eaglepipe.target_head import TargetHead
from eaglepipe.training.data.batch import EncodedBatch, TrainingSource
from eaglepipe.training.data.supervision_rows import EncodedSupervision


@dataclass(frozen=True, kw_only=True)
class TrainerInputs:
    """Keyword arguments of the trainer module; Ha = A·Ht, D draft vocabulary."""

    input_ids: torch.Tensor  # int64 [B, T]
    attention_mask: torch.Tensor  # int64 [B, T]
    loss_mask: torch.Tensor  # bool [B, T]
    aux_hidden_states: torch.Tensor  # compute dtype [B, T, Ha]
    target_probs: torch.Tensor | SparseTargets  # S rows, of the slots that were read, in order; float32 [S, D]
    position_mask: torch.Tensor  # bool [B, T, 1]
    position_ids: torch.Tensor  # int64 [B, T]
    seq_lens: torch.Tensor  # int64 [B, max_docs]
    doc_remaining: torch.Tensor  # int64 [B, T]

    def arguments(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


class SupervisionDecoder:
    """Owns what decoding needs on the device: the codecs and, for stored hidden states, the head rows."""

    def __init__(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> None:
        self._spec = source.spec
        self._dtype = dtype
        self._head = None
        if source.spec.supervision == "hidden":
            self._head = TargetHead.from_tensors(source.start_tensors(), source.head).to(device)

    def decode(self, batch: EncodedBatch) -> TrainerInputs:
        """Decode a micro-batch that is on the device."""
        shape = batch.input_ids.shape
        with torch.no_grad(), torch.autocast(batch.input_ids.device.type, enabled=False):
            aux = self._spec.decode_aux(EncodedRows(payload=batch.aux_payload, scales=batch.aux_scales))
            targets = self._targets(batch.supervision)
        return TrainerInputs(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            loss_mask=batch.loss_mask,
            aux_hidden_states=aux.to(self._dtype).reshape(*shape, -1),
            target_probs=targets,
            position_mask=batch.position_mask,
            position_ids=batch.position_ids,
            seq_lens=batch.seq_lens,
            doc_remaining=batch.doc_remaining,
        )

    def _targets(self, encoded: EncodedSupervision) -> torch.Tensor | SparseTargets:
        if encoded.ids is not None and encoded.counts is not None and encoded.tail is not None:
            return SparseTargets(
                probs=encoded.payload.view(torch.float16)[:, 0],
                ids=encoded.ids.long(),
                row_offsets=F.pad(encoded.counts.cumsum(0, dtype=torch.int64), (1, 0)),
                tail=encoded.tail,
            )
        rows = self._spec.rows.decode(EncodedRows(payload=encoded.payload))
        return rows.float() if self._head is None else self._head.probabilities(rows)
