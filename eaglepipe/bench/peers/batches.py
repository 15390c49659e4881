"""Batches of a workload as the steps of other packages take them: rows that a package can pack, decoded beforehand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch

from eaglepipe.bench.step_paths import StepPath, StepSetup, load_all
from eaglepipe.cache.schema import ShardSpec
from eaglepipe.cache.supervision.hidden import HiddenSupervision
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.training.data.batch import EncodedBatch, Row

Layout = tuple[tuple[Row, ...], ...]
"""Rows of samples, by batch."""


@dataclass(frozen=True, kw_only=True)
class DecodedBatch:
    """A batch with all that a draft is trained from; nothing of the target's head has been computed."""

    packed: PackedBatch
    aux: torch.Tensor  # [B, T, A·H]
    last_hidden: torch.Tensor  # float32 [B, T, H], of the slots in position_mask, else 0


def decoded_layouts(path: StepPath, layouts: Mapping[str, Layout]) -> dict[str, list[DecodedBatch]]:
    """Load and decode the batches of each layout; one that equals another before it is left out."""
    distinct: dict[Layout, str] = {}
    for name, layout in layouts.items():
        distinct.setdefault(layout, name)
    return {
        name: [_decoded(path, batch) for batch in load_all(path.setup, layout)[1]] for layout, name in distinct.items()
    }


def unpadded_rows(setup: StepSetup) -> Layout:
    """Return a row a sample in corpus order; `reference_rows` at most share a batch, and only if equally long."""
    lengths, size = setup.cache.index.num_tokens.tolist(), setup.workload.reference_rows
    groups = [list(group) for _, group in groupby(range(len(lengths)), key=lengths.__getitem__)]
    return tuple(
        tuple((sample,) for sample in group[start : start + size])
        for group in groups
        for start in range(0, len(group), size)
    )


def shortest_packed_rows(setup: StepSetup) -> Layout:
    """Return samples packed in corpus order into rows no longer than the longest of them, each row in its own batch."""
    lengths = setup.cache.index.num_tokens.tolist()
    rows: list[Row] = []
    room = 0
    for sample, length in enumerate(lengths):
        if length > room:
            rows.append(())
            room = max(lengths)
        rows[-1] += (sample,)
        room -= length
    return tuple((row,) for row in rows)


def last_hidden_states(spec: ShardSpec, batch: EncodedBatch, mask: torch.Tensor) -> torch.Tensor:
    """Decode the target's last hidden states of the slots in `mask`, [B, T], that supervise them.

    Returns:
        float32 [B, T, H], zeros elsewhere.
    """
    assert isinstance(spec.kind, HiddenSupervision), "the caches of these benchmarks store last hidden states"
    rows = spec.kind.decode_rows(batch.supervision)
    states = rows.new_zeros(*mask.shape, rows.shape[-1], dtype=torch.float32)
    states[mask] = rows.float()
    return states


def document_spans(batch: EncodedBatch, apart: bool) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Yield row, slots and the document of each slot, of rows without their padding or of single documents."""
    host = batch.packed.on_host()
    for row in range(host.input_ids.shape[0]):
        length = int(host.attention_mask[row].sum())
        starts = (host.position_ids[row, :length] == 0).long()
        documents = starts.cumsum(0) - 1
        if not apart:
            yield row, slice(0, length), documents
            continue
        bounds = [*starts.nonzero()[:, 0].tolist(), length]
        for start, stop in pairwise(bounds):
            yield row, slice(start, stop), documents[start:stop]


def _decoded(path: StepPath, batch: EncodedBatch) -> DecodedBatch:
    spec, packed = path.setup.cache.spec, batch.packed
    states = last_hidden_states(spec, batch, packed.position_mask)
    return DecodedBatch(packed=packed, aux=path.decode(batch).aux, last_hidden=states)
