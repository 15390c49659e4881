"""From encoded rows on the training device to the inputs of the trainer modules.

The only place where stage 2 decodes: the trainer modules do not depend on the encoding of a cache.
"""

from functools import partial

import torch
import torch.nn.functional as F

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.supervision.columns import NUM_ENTRIES
from eaglepipe.cache.supervision.sparse import SparseRows
from eaglepipe.eagle.unroll.interface import EncodedTargets, TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from eaglepipe.target_head import TargetHead
from eaglepipe.training.data.batch import EncodedBatch, TrainingSource


class SupervisionDecoder:
    """Decodes batches on the device; holds the head rows if the cache stores hidden states.

    Distributions over the whole draft vocabulary are decoded at once, or left encoded if a batch has more rows of them
    than `at_once`.
    """

    def __init__(
        self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype, at_once: int | None = None
    ) -> None:
        self._at_once, self._draft_size = at_once, source.vocab.size
        self._spec = source.spec
        self._dtype = dtype
        self._head = None
        if not source.spec.kind.stores_probabilities:
            self._head = TargetHead.from_tensors(source.start_tensors(), source.head).to(device)

    def decode(self, batch: EncodedBatch) -> TrainerInputs:
        """Decode a micro-batch that is on the device."""
        with torch.no_grad(), torch.autocast(batch.packed.device.type, enabled=False):
            aux = self._spec.decode_aux(EncodedRows(payload=batch.aux_payload, scales=batch.aux_scales))
            targets = self._targets(batch)
        return TrainerInputs(
            batch=batch.packed,
            aux_hidden_states=aux.to(self._dtype).reshape(*_slots(batch), -1),
            target_probs=targets,
        )

    def _targets(self, batch: EncodedBatch) -> torch.Tensor | SparseTargets | EncodedTargets:
        if NUM_ENTRIES not in batch.supervision and self._at_once is not None:
            num_rows = len(batch.supervision[self._spec.kind.column])
            if num_rows > self._at_once:
                return EncodedTargets(
                    decode=partial(self._decode_rows, batch), num_rows=num_rows, draft_size=self._draft_size
                )
        decoded = self._spec.kind.decode(batch.supervision, self._head)
        if not isinstance(decoded, SparseRows):
            return decoded
        return SparseTargets(
            probs=decoded.probs,
            ids=decoded.ids,
            row_offsets=F.pad(decoded.counts.cumsum(0, dtype=torch.int64), (1, 0)),
            tail=decoded.tail,
            layout=batch.sparse_layout,
            top_first=decoded.top_first,
        )

    def _decode_rows(self, batch: EncodedBatch, rows: slice) -> torch.Tensor:
        columns = {name: column[rows] for name, column in batch.supervision.items()}
        with torch.no_grad(), torch.autocast(batch.packed.device.type, enabled=False):
            decoded = self._spec.kind.decode(columns, self._head)
        assert isinstance(decoded, torch.Tensor)
        return decoded


def _slots(batch: EncodedBatch) -> tuple[int, ...]:
    """The shape of the slots that a batch has aux states of."""
    return batch.packed.shape if batch.packed.share is None else (len(batch.aux_payload),)
