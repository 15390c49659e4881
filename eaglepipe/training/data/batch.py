"""Values that pass between order, packing, loader and loop.

B rows · T slots of a row · S slots set in position_mask · K TTT steps. A document is one cached sample in a packed row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.columns import Columns
from eaglepipe.cache.types import CachedSample, SampleIndex
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.sequence_share import SequenceShare
from eaglepipe.eagle.unroll.sparse_rows import SparseLayout
from eaglepipe.target_head import HeadSpec
from eaglepipe.vocab import DraftVocab


class SampleSource(Protocol):
    """The attributes of a cache that the order, the loader and the bigram reference read."""

    @property
    def identity(self) -> str: ...

    @property
    def index(self) -> SampleIndex: ...

    def read(self, i: int, /) -> CachedSample: ...


class TrainingSource(SampleSource, Protocol):
    """The attributes of an open cache that stage 2 reads: all that it knows of a target."""

    @property
    def spec(self) -> ShardSpec: ...

    @property
    def head(self) -> HeadSpec: ...

    @property
    def vocab(self) -> DraftVocab: ...

    @property
    def max_length(self) -> int: ...

    @property
    def target_config(self) -> dict[str, Any]: ...

    def start_tensors(self) -> dict[str, torch.Tensor]: ...


Row = tuple[int, ...]
"""The samples packed into one row, by their number in the cache."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples that train and those that are held out, both by ascending number."""

    train: NDArray[np.int64]
    heldout: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PackingLimits:
    """Bounds of the rows and micro-batches that a set of samples is packed into, and the ranks that share them."""

    pack_length: int
    micro_batch_tokens: int
    world_size: int = 1
    rank: int = 0
    share: SequenceShare | None = None
    """The part of each micro-batch that this process has; a rank of the two above is then a group of processes."""


@dataclass(frozen=True, kw_only=True)
class DataPosition:
    """The place of a run in the data; all that resuming the order needs."""

    epoch: int = 0
    samples_done: int = 0


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One optimizer step: its samples, this rank's micro-batches of them, and the position after it."""

    samples: NDArray[np.int64]
    micro_batches: tuple[tuple[Row, ...], ...]
    after: DataPosition
    share: SequenceShare | None = None


@dataclass(frozen=True, kw_only=True)
class BatchColumns:
    """The rows of a sample that a batch carries."""

    supervision: Literal["covered", "supervised", "none"] = "covered"
    """`covered`: slots set in position_mask. `supervised`: slots set in loss_mask, those whose top-1 lies outside the
    draft vocabulary too."""
    aux: bool = True
    last_hidden: bool = False  # of every token, supervised or not


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """A micro-batch on its way to the device: shifted ids and masks, and rows that are still encoded."""

    packed: PackedBatch
    aux_payload: torch.Tensor
    """uint8 [B*T, aux row bytes], not shifted, zeros in the pad; no rows if not carried. With a share, like the scales
    and last hidden states, only those of the slots that this process owns."""
    aux_scales: torch.Tensor | None  # float32 [B*T, scales]
    supervision: Columns  # by column, rows of the slots that `BatchColumns.supervision` asks for, in order
    sparse_layout: SparseLayout | None = None  # of sparse supervision, on the host
    last_hidden_payload: torch.Tensor | None = None  # uint8 [B*T, supervision row bytes], not shifted, zeros in the pad
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)  # tensors that the objective drew for this batch

    def to(self, device: torch.device) -> "EncodedBatch":
        """Return the batch on a device; copies from pinned memory do not block."""
        return replace(
            self,
            packed=self.packed.to(device),
            supervision=_moved(self.supervision, device),
            extras=_moved(self.extras, device),
            **_moved(_tensors(self), device),
        )

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors that a transfer to a device moves."""
        parts = (self.packed.tensors(), _tensors(self), self.supervision, self.extras)
        return [tensor for part in parts for tensor in part.values()]


def _moved(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, Any]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def _tensors(value: EncodedBatch) -> dict[str, torch.Tensor]:
    values = {f.name: getattr(value, f.name) for f in fields(value)}
    return {name: tensor for name, tensor in values.items() if isinstance(tensor, torch.Tensor)}


@dataclass(frozen=True, kw_only=True)
class StepHeader:
    """The sizes of a rank's part of a step, known before the first forward."""

    plan: StepPlan
    counts: torch.Tensor  # int64 [K] elements in the loss at each depth, this rank
    num_tokens: int  # real tokens, this rank
    num_supervised: int  # supervised tokens, this rank
    num_slots: int  # tokens and padding, this rank
