"""The host's side of a micro-batch, kept when its tensors go to a device: nothing has to be fetched back from there."""

import torch
import torch.nn.functional as F

from eaglepipe.eagle.unroll.interface import HostMasks
from eaglepipe.training.data.collate import Columns
from eaglepipe.training.data.supervision_rows import EncodedSupervision


def masks_on_host(columns: Columns, supervision: EncodedSupervision) -> HostMasks:
    """What the unroll is planned from and checked by, once the supervision's rows have been copied."""
    counts, ids = supervision.counts, supervision.ids
    return HostMasks(
        attention_mask=columns.attention_mask.bool(),
        loss_mask=columns.loss_mask,
        position_mask=columns.position_mask.squeeze(-1),
        seq_lens=columns.seq_lens,
        doc_remaining=columns.doc_remaining,
        row_offsets=None if counts is None else F.pad(counts.cumsum(0, dtype=torch.int64), (1, 0)),
        id_bounds=None if ids is None else _bounds(ids),
    )


def _bounds(ids: torch.Tensor) -> torch.Tensor:
    """Lowest and highest id, int64 [2]; nothing, where there is none."""
    values = ids.numpy()
    return torch.tensor([values.min(), values.max()] if len(values) else [], dtype=torch.int64)
