"""The elements that P-EAGLE learns from: COD (conditional-on-depth) sampling and segments, as tables on the host.

An element is an anchor and a depth; its reference slot, anchor + depth, gives it position and label. Slots are flat,
row by row. T slots of a row, N elements, R of them in the loss, K depths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.errors import DraftError


@dataclass(frozen=True, kw_only=True)
class CodSettings:
    """The number of depths, and the share of elements drawn at each."""

    depths: int = 8
    ratio: float = 0.7
    min_ratio: float = 0.2

    def num_drawn(self, num_valid: int, depth: int) -> int:
        """Return the elements to draw at a depth of 1 or more in a document with `num_valid` supervised slots."""
        return int(max(0, num_valid - depth) * self.share(depth))

    def share(self, depth: int) -> float:
        """Return the share of a document's chains to draw at a depth of 1 or more."""
        return max(self.ratio**depth, self.min_ratio)


@dataclass(frozen=True, kw_only=True)
class Document:
    """The slots of a document in a batch, without padding."""

    start: int  # flat slot
    length: int


def sample_cod(
    valid: torch.Tensor, settings: CodSettings, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the elements below depth 0 of one document.

    At each depth some of a pool of reference slots are drawn; the pool of the next depth are the slots after them that
    are supervised. So every chain has all its depths, and all its references are supervised.

    Args:
        valid: bool [T], the supervised slots.
        generator: on the CPU; None draws whole pools.

    Returns: anchors and depths, int64 [n], by depth and then by anchor.
    """
    num_valid = int(valid.sum())
    pool = valid[1:].nonzero()[:, 0] + 1
    anchors, depths = [pool[:0]], [pool[:0]]
    for depth in range(1, settings.depths):
        if generator is not None:
            drawn = torch.randperm(len(pool), generator=generator)[: settings.num_drawn(num_valid, depth)]
            pool = pool[drawn].sort().values
        anchors.append(pool - depth)
        depths.append(torch.full_like(pool, depth))
        following = pool[pool + 1 < len(valid)] + 1
        pool = following[valid[following]]
    return torch.cat(anchors), torch.cat(depths)


def segment_of(anchors: torch.Tensor, depths: torch.Tensor, length: int, num_segments: int) -> torch.Tensor:
    """Return the sequence partition of each element, int64 [n]: by anchor at depth 0, by the slot after it below.

    An element then reads only its own segment, and depth 0 of earlier ones.
    """
    return ((anchors + (depths > 0)) * num_segments // length).clamp(0, num_segments - 1)


def find_documents(batch: PackedBatch) -> list[Document]:
    """Find the documents of a batch on the host, row by row, without their padding."""
    num_slots = batch.shape[1]
    documents = []
    used_slots = batch.attention_mask.sum(1).tolist()
    lengths = [[num_slots]] * len(used_slots) if batch.seq_lens is None else batch.seq_lens.tolist()
    for row, (used, row_lengths) in enumerate(zip(used_slots, lengths, strict=True)):
        begin = 0
        for length in row_lengths:
            end = min(begin + length, used)
            if end > begin:
                documents.append(Document(start=row * num_slots + begin, length=end - begin))
            begin += length
    return documents


@dataclass(frozen=True, kw_only=True)
class DocumentElements:
    """All elements of a document, anchors counted from its start; depth 0 first, then chain by chain."""

    document: Document
    anchors: torch.Tensor  # int64 [N]
    depths: torch.Tensor  # int64 [N]
    in_loss: torch.Tensor  # bool [N]


def draw_elements(batch: PackedBatch, settings: CodSettings, seeds: Sequence[int] | None) -> Iterator[DocumentElements]:
    """Draw the elements of each document of a batch on the host; one seed a document, None for every chain there is.

    Raises:
        DraftError: for a number of seeds that is not the number of documents.
    """
    documents = find_documents(batch)
    if seeds is not None and len(seeds) != len(documents):
        raise DraftError(f"cod_seeds has {len(seeds)} seeds for {len(documents)} documents")
    valid = next(batch.supervised_chains(1)).flatten()
    for index, document in enumerate(documents):
        supervised = valid[document.start : document.start + document.length]
        generator = None if seeds is None else torch.Generator().manual_seed(seeds[index])
        anchors, depths = sample_cod(supervised, settings, generator)
        order = (anchors * settings.depths + depths).argsort()
        slots = torch.arange(document.length)
        yield DocumentElements(
            document=document,
            anchors=torch.cat((slots, anchors[order])),
            depths=torch.cat((torch.zeros_like(slots), depths[order])),
            in_loss=torch.cat((supervised, torch.ones(len(order), dtype=torch.bool))),
        )


def count_elements(batch: PackedBatch, *, settings: CodSettings, seeds: Sequence[int] | None) -> torch.Tensor:
    """Count the elements in the loss at each depth, as `PeagleTrainerModule` will for this batch: int64 [K]."""
    counts = torch.zeros(settings.depths, dtype=torch.int64)
    for elements in draw_elements(batch, settings, seeds):
        counts += elements.depths[elements.in_loss].bincount(minlength=settings.depths)
    return counts


@dataclass(frozen=True, kw_only=True)
class PeaglePart:
    """One sequence partition of a batch: the elements that its part of the loss depends on."""

    anchors: torch.Tensor  # int64 [N], flat slots
    depths: torch.Tensor  # int64 [N]
    rows: torch.Tensor  # int64 [R], indices of the elements in the loss


def plan_parts(drawn: Sequence[DocumentElements], num_parts: int) -> list[PeaglePart]:
    """Divide every document into `num_parts` segments; parts without a loss are left out.

    A part holds its segment's elements and, as keys, all earlier slots at depth 0; later slots, which none of its loss
    elements reads, are left out.
    """
    parts = []
    for part in range(num_parts):
        anchors, depths, in_loss = [], [], []
        for elements in drawn:
            segments = segment_of(elements.anchors, elements.depths, elements.document.length, num_parts)
            in_part = elements.in_loss & (segments == part)
            if not bool(in_part.any()):
                continue
            last = elements.anchors[in_part].max()
            context = (elements.depths == 0) & (elements.anchors <= last)
            used = in_part | context
            anchors.append(elements.anchors[used] + elements.document.start)
            depths.append(elements.depths[used])
            in_loss.append(in_part[used])
        if anchors:
            rows = torch.cat(in_loss).nonzero()[:, 0]
            parts.append(PeaglePart(anchors=torch.cat(anchors), depths=torch.cat(depths), rows=rows))
    return parts
