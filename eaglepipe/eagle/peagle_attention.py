"""Visibility between the elements of a P-EAGLE batch, for flex_attention and for a dense masked attention alike.

An element is a pair of an anchor (a slot of the sequence) and a depth. N elements, Q of them asking; h query heads,
kv key-value heads, d head size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask

MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

BLOCK_ELEMENTS = 128
"""Side of a block of flex_attention."""

DENSE_QUERIES = 256
"""Queries of the dense attention whose mask is written out at once, for the keys that they read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Elements:
    """Elements by index; int32, since a kernel reads them for every score."""

    anchors: torch.Tensor  # int32 [n]
    depths: torch.Tensor  # int32 [n]
    documents: torch.Tensor  # int32 [n], -1 for padding

    def __len__(self) -> int:
        return len(self.anchors)

    def take(self, places: torch.Tensor) -> "Elements":
        return Elements(anchors=self.anchors[places], depths=self.depths[places], documents=self.documents[places])


def make_elements(anchors: torch.Tensor, depths: torch.Tensor, lengths: torch.Tensor, num_slots: int) -> Elements:
    """Make the elements of a sequence of `num_slots` slots: documents of `lengths` in turn, then padding."""
    lengths = torch.as_tensor(lengths)
    ends = lengths.long().cumsum(0)
    slots = torch.arange(num_slots, device=lengths.device)
    documents = torch.searchsorted(ends, slots, right=True)
    documents = torch.where(documents < len(ends), documents, -1).to(anchors.device)
    return Elements(anchors=anchors.int(), depths=depths.int(), documents=documents[anchors.long()].int())


def visibility(queries: Elements, keys: Elements, window: int | None = None) -> MaskMod:
    """Return the rule as flex_attention takes it: indices of a query and a key -> whether the one reads the other.

    Both in one document and no padding; and the key at depth 0 no later than the query's anchor and less than a
    `window` before its position, or of the query's own chain and no deeper.
    """

    def visible(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        document = queries.documents[query]
        here, there = queries.anchors[query], keys.anchors[key]
        deep, depth = queries.depths[query], keys.depths[key]
        context = (depth == 0) & (here >= there)
        if window is not None:
            context = context & (here + deep - there < window)
        reads = context | ((here == there) & (deep >= depth))
        return (document == keys.documents[key]) & (document >= 0) & reads

    return visible


def create_peagle_mask_mod(
    anchor_pos: torch.Tensor, depth: torch.Tensor, lengths: torch.Tensor, total_seq_len: int
) -> MaskMod:
    """Return a `mask_mod` for flex_attention over sampled elements.

    Args:
        anchor_pos: int [N], slots of the sequence.
        depth: int [N].
        lengths: int [documents], one after the other; slots beyond their sum are padding.
        total_seq_len: slots of the sequence.
    """
    elements = make_elements(anchor_pos, depth, lengths, total_seq_len)
    return visibility(elements, elements)


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseChunk:
    """Contiguous queries and all keys that any of them reads."""

    queries: slice
    keys: torch.Tensor  # int64 [k], places
    visible: torch.Tensor  # bool [queries, k]
    blind: torch.Tensor | None  # bool [queries, 1], queries that read nothing; None: there are none


@dataclass(frozen=True, kw_only=True, eq=False)
class PeagleMask:
    """Visibility of keys to queries; `block_mask` for flex_attention, `chunks` for the dense one, each made once.

    Length-dependent rotary embeddings take `longest` for the length; None: the largest position plus one.
    """

    queries: Elements
    keys: Elements
    longest: torch.Tensor | None = None  # int64 []
    query_rows: torch.Tensor | None = None  # int64 [Q], the elements that are queries; None: all
    window: int | None = None  # positions that a query reads, its own included; None: all

    def of_queries(self, places: torch.Tensor) -> "PeagleMask":
        """Return the mask of the same keys and only the queries at `places` int64 [Q]."""
        return replace(self, queries=self.queries.take(places), query_rows=places)

    def in_window(self, window: int) -> "PeagleMask":
        """Return the mask of a layer that reads the newest `window` positions alone."""
        return replace(self, window=window)

    @cached_property
    def block_mask(self) -> BlockMask:
        """The mask for flex_attention, made from each block's bounds, so that nothing of size Q · N is written."""
        possible = _possible_blocks(_Blocks.of(self.queries), _Blocks.of(self.keys))
        order = possible.int().argsort(dim=-1, descending=True, stable=True)
        return BlockMask.from_kv_blocks(
            possible.sum(-1).int()[None, None],
            order.int()[None, None],
            BLOCK_SIZE=BLOCK_ELEMENTS,
            mask_mod=visibility(self.queries, self.keys, self.window),
            seq_lengths=(len(self.queries), len(self.keys)),
        )

    @cached_property
    def chunks(self) -> tuple[DenseChunk, ...]:
        """The chunks for `dense_attention`; reads the elements on the host."""
        return tuple(self._chunk(queries, keys) for queries, keys in _spans(self.queries, self.keys))

    def _chunk(self, queries: slice, keys: slice) -> DenseChunk:
        device = self.keys.anchors.device
        key_places = torch.arange(keys.start, keys.stop, device=device)
        query_places = torch.arange(queries.start, queries.stop, device=device)[:, None]
        visible = visibility(self.queries, self.keys, self.window)(key_places, key_places, query_places, key_places)
        read = visible.any(0)
        blind = ~visible.any(1, keepdim=True)
        visible = visible[:, read] | blind
        return DenseChunk(
            queries=queries, keys=key_places[read], visible=visible, blind=blind if bool(blind.any()) else None
        )


def peagle_mask(anchor_pos: torch.Tensor, depth: torch.Tensor, lengths: torch.Tensor, total_seq_len: int) -> PeagleMask:
    """Make the mask of sampled elements that all read each other by the rule; arguments of `create_peagle_mask_mod`."""
    elements = make_elements(anchor_pos, depth, lengths, total_seq_len)
    return PeagleMask(queries=elements, keys=elements)


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """Bounds of blocks of elements, int32 [blocks] each; an empty range where a block has no such element."""

    documents: tuple[torch.Tensor, torch.Tensor]
    anchors: tuple[torch.Tensor, torch.Tensor]
    first_context: torch.Tensor  # the lowest anchor at depth 0
    deep_anchors: tuple[torch.Tensor, torch.Tensor]  # of elements below depth 0

    @staticmethod
    def of(elements: Elements) -> "_Blocks":
        real, deep = elements.documents >= 0, elements.depths > 0
        return _Blocks(
            documents=_bounds(elements.documents, real),
            anchors=_bounds(elements.anchors, real),
            first_context=_bounds(elements.anchors, real & ~deep)[0],
            deep_anchors=_bounds(elements.anchors, real & deep),
        )


def _bounds(values: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    limits = torch.iinfo(values.dtype)
    lowest, highest = values.masked_fill(~chosen, limits.max), values.masked_fill(~chosen, limits.min)
    padding = -len(values) % BLOCK_ELEMENTS
    lowest = F.pad(lowest, (0, padding), value=limits.max).view(-1, BLOCK_ELEMENTS)
    highest = F.pad(highest, (0, padding), value=limits.min).view(-1, BLOCK_ELEMENTS)
    return lowest.amin(1), highest.amax(1)


def _possible_blocks(queries: _Blocks, keys: _Blocks) -> torch.Tensor:
    """Return bool [query blocks, key blocks], False only if no query of the one reads a key of the other."""
    context = queries.anchors[1][:, None] >= keys.first_context
    chain = _overlap(queries.deep_anchors, keys.deep_anchors)
    return _overlap(queries.documents, keys.documents) & (context | chain)


def _overlap(ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (ours[0][:, None] <= theirs[1]) & (ours[1][:, None] >= theirs[0])


def _spans(queries: Elements, keys: Elements) -> Iterator[tuple[slice, slice]]:
    """Yield chunks of queries with the keys of their document; all keys if a document's elements are scattered."""
    ours, theirs = queries.documents.cpu(), keys.documents.cpu()
    ordered = bool((ours.diff() >= 0).all()) and bool((theirs.diff() >= 0).all())
    names, counts = ours.unique_consecutive(return_counts=True)
    first = 0
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        begin, end = 0, len(theirs)
        if ordered:
            begin, end = (int(torch.searchsorted(theirs, name, right=right)) for right in (False, True))
        pieces = -(-count // DENSE_QUERIES)
        edges = [first + count * piece // pieces for piece in range(pieces + 1)]
        for start, stop in pairwise(edges):
            yield slice(start, stop), slice(begin, end)
        first += count


def dense_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunks: tuple[DenseChunk, ...], scale: float
) -> torch.Tensor:
    """Compute masked softmax attention chunk by chunk: as flex_attention does, with a backward on every device.

    Args:
        queries: [1, h, Q, d]; keys, values: [1, kv, N, d].

    Returns: [1, h, Q, d]; zeros for queries that read nothing.
    """
    attend = partial(_attend, groups=queries.shape[1] // keys.shape[1], scale=scale)
    outputs = [attend(queries[:, :, chunk.queries], keys, values, chunk) for chunk in chunks]
    return torch.cat(outputs, dim=2) if outputs else torch.zeros_like(queries)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: DenseChunk, *, groups: int, scale: float
) -> torch.Tensor:
    if len(chunk.keys) == 0:
        return torch.zeros_like(queries)
    keys, values = (states.index_select(2, chunk.keys).repeat_interleave(groups, dim=1) for states in (keys, values))
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=chunk.visible, scale=scale)
    return attended if chunk.blind is None else attended.masked_fill(chunk.blind, 0.0)
