"""The blocks that a batch is trained on: anchors drawn on the host, the guesses that count, and what each block reads.

An anchor is a slot t, which holds the id of token p = t + 1; its block reads slots up to t. Guess d is token p + 1 + d,
supervised by slot t + d. It counts while slots t to t + d are supervised and of one document, so that a block at the
end of a turn counts the guesses that it can. Slots are flat, row by row. N blocks of W slots, K guesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.peagle_data import find_documents
from eaglepipe.errors import DraftError


@dataclass(frozen=True, kw_only=True)
class BlockSettings:
    """The size of a block, and how many of a sample are drawn."""

    block_size: int = 8
    anchor_slots: int = 1  # slots that guess nothing: 1, or 0 if the anchor's slot guesses too
    max_anchors: int = 512

    @property
    def depths(self) -> int:
        """K."""
        return self.block_size - self.anchor_slots


@dataclass(frozen=True, kw_only=True)
class DrawnBlocks:
    """N blocks on the host, by anchor."""

    anchors: torch.Tensor  # int64 [N], flat slots
    starts: torch.Tensor  # int64 [N], the first slot of each one's document
    lengths: torch.Tensor  # int64 [N], guesses that count, from 1 to K

    def __len__(self) -> int:
        return len(self.anchors)

    def take(self, part: slice) -> "DrawnBlocks":
        return DrawnBlocks(anchors=self.anchors[part], starts=self.starts[part], lengths=self.lengths[part])

    def counts(self, depths: int) -> torch.Tensor:
        """Count the guesses in the loss at each depth: int64 [K]."""
        return (self.lengths[:, None] > torch.arange(depths)).sum(0)


def draw_blocks(host: PackedBatch, settings: BlockSettings, seeds: Sequence[int] | None) -> DrawnBlocks:
    """Draw the blocks of each document of a batch on the host; one seed a document, None for every block there is.

    Raises:
        DraftError: for a number of seeds that is not the number of documents.
    """
    documents = find_documents(host)
    if seeds is not None and len(seeds) != len(documents):
        raise DraftError(f"there are {len(seeds)} anchor seeds for {len(documents)} documents")
    chains = torch.stack(list(host.supervised_chains(settings.depths))).sum(0).flatten()
    anchors, starts = [chains.new_empty(0)], [chains.new_empty(0)]
    for index, document in enumerate(documents):
        chosen = chains[document.start : document.start + document.length].nonzero()[:, 0]
        if seeds is not None:
            generator = torch.Generator().manual_seed(seeds[index])
            order = torch.randperm(len(chosen), generator=generator)[: settings.max_anchors]
            chosen = chosen[order.sort().values]
        anchors.append(chosen + document.start)
        starts.append(torch.full_like(chosen, document.start))
    slots = torch.cat(anchors)
    return DrawnBlocks(anchors=slots, starts=torch.cat(starts), lengths=chains[slots])


@dataclass(frozen=True, kw_only=True)
class BlockPart:
    """Blocks of one forward: the context that they read, cut out of its batch, and the guesses in their loss."""

    blocks: DrawnBlocks
    context: torch.Tensor  # int64 [C], flat slots: of each document, those up to its last anchor
    starts: torch.Tensor  # int64 [N], places in `context`: the first that a block may read
    stops: torch.Tensor  # int64 [N], one past the last
    rows: torch.Tensor  # int64 [R], block slots, of N·W, that guess
    owners: torch.Tensor  # int64 [R], their blocks
    depths: torch.Tensor  # int64 [R], their depths

    @property
    def slots(self) -> torch.Tensor:
        """The anchor of each guess, int64 [R]."""
        return self.blocks.anchors[self.owners]

    @property
    def references(self) -> torch.Tensor:
        """The slot that supervises each guess and holds the token before it, int64 [R]."""
        return self.slots + self.depths


def plan_parts(drawn: DrawnBlocks, settings: BlockSettings, num_parts: int) -> list[BlockPart]:
    """Divide the blocks into `num_parts` parts of about one size; none without a block."""
    edges = [len(drawn) * part // num_parts for part in range(num_parts + 1)]
    spans = [slice(begin, end) for begin, end in pairwise(edges) if end > begin]
    return [_plan_part(drawn.take(span), settings) for span in spans]


def _plan_part(blocks: DrawnBlocks, settings: BlockSettings) -> BlockPart:
    firsts, document, counts = blocks.starts.unique_consecutive(return_inverse=True, return_counts=True)
    last = blocks.anchors[counts.cumsum(0) - 1]
    sizes = last - firsts + 1
    begins = sizes.cumsum(0) - sizes
    context = torch.arange(int(sizes.sum())) + (firsts - begins).repeat_interleave(sizes)
    owners, depths = (blocks.lengths[:, None] > torch.arange(settings.depths)).nonzero().unbind(1)
    return BlockPart(
        blocks=blocks,
        context=context,
        starts=begins[document],
        stops=begins[document] + blocks.anchors - blocks.starts + 1,
        rows=owners * settings.block_size + settings.anchor_slots + depths,
        owners=owners,
        depths=depths,
    )
