"""From encoded rows on the training device to the inputs of the trainer modules.

The only place where stage 2 decodes: the trainer modules do not depend on the encoding of a cache.
"""

import torch
import torch.nn.functional as F

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.supervision.sparse import SparseRows
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets
from eaglepipe.target_head import TargetHead
from eaglepipe.training.data.batch import EncodedBatch, TrainingSource


class SupervisionDecoder:
    """Decodes batches on the device; holds the head rows if the cache stores hidden states."""

    def __init__(self, source: TrainingSource, *, device: torch.device, dtype: torch.dtype) -> None:
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
            aux_hidden_states=aux.to(self._dtype).reshape(*batch.packed.shape, -1),
            target_probs=targets,
        )

    def _targets(self, batch: EncodedBatch) -> torch.Tensor | SparseTargets:
        decoded = self._spec.kind.decode(batch.supervision, self._head)
        if not isinstance(decoded, SparseRows):
            return decoded
        return SparseTargets(
            probs=decoded.probs,
            ids=decoded.ids,
            row_offsets=F.pad(decoded.counts.cumsum(0, dtype=torch.int64), (1, 0)),
            tail=decoded.tail,
            layout=batch.sparse_layout,
        )
