"""What a block reads: its document's context before the anchor, and its own slots; never another block.

C context slots, document after document; N blocks of W slots, each with a range of the context; R query slots among
the N·W. Keys are the C context slots, then the N·W block slots.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch.nn.attention.flex_attention import BlockMask

from eaglepipe.eagle.peagle_attention import BLOCK_ELEMENTS, DENSE_QUERIES, DenseChunk, MaskMod, dense_attention
from eaglepipe.eagle.peagle_draft import flex_attention_where_it_compiles


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockVisibility:
    """The visibility of one layer, and the attention under it: a `BlockAttention`.

    `starts` and `stops` bound the context of each block before a window cuts it; both are on the host, ascending.
    """

    starts: torch.Tensor  # int64 [N], host: the document's first slot
    stops: torch.Tensor  # int64 [N], host: one past the last slot before the anchor's token
    num_context: int
    width: int
    device: torch.device
    window: int | None = None  # context slots that a block reads, the newest ones; None: all
    causal: bool = False  # whether a slot reads no later slot of its block
    rows: torch.Tensor | None = None  # int64 [R], the slots that query; None: all
    host_rows: torch.Tensor | None = None  # the same on the host

    def of_layer(self, window: int | None, *, causal: bool) -> "BlockVisibility":
        """Return the visibility of a layer."""
        return replace(self, window=window, causal=causal)

    def of_queries(self, rows: torch.Tensor) -> "BlockVisibility":
        """Return the same keys with fewer queries: `rows` int64 [R], host, ascending."""
        return replace(self, rows=rows.to(self.device), host_rows=rows)

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        """As `BlockAttention`: flex_attention on an accelerator, exact chunks elsewhere."""
        if queries.device.type == "cpu":
            return dense_attention(queries, keys, values, self.chunks, scale)
        return flex_attention_where_it_compiles(queries, keys, values, self.block_mask, scale)

    @property
    def firsts(self) -> torch.Tensor:
        """The first context slot that each block reads, int64 [N], host."""
        return self.starts if self.window is None else torch.maximum(self.starts, self.stops - self.window)

    @cached_property
    def _query_slots(self) -> torch.Tensor:
        return torch.arange(len(self.starts) * self.width) if self.host_rows is None else self.host_rows

    def rule(self, device: torch.device) -> MaskMod:
        """Return the rule as flex_attention takes it: indices of a query and a key -> whether it reads it."""
        slots, firsts, stops = (table.to(device).int() for table in (self._query_slots, self.firsts, self.stops))
        width, num_context, causal = self.width, self.num_context, self.causal

        def visible(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            slot, own = slots[query], key - num_context
            block = slot // width
            context = (key < num_context) & (key >= firsts[block]) & (key < stops[block])
            inside = (own >= 0) & (torch.div(own, width, rounding_mode="floor") == block)
            return context | (inside & (own <= slot) if causal else inside)

        return visible

    def dense(self) -> torch.Tensor:
        """Return the whole mask, bool [R, C + N·W], True where a query reads a key."""
        keys = torch.arange(self.num_context + len(self.starts) * self.width, device=self.device)
        queries = torch.arange(len(self._query_slots), device=self.device)[:, None]
        return self.rule(self.device)(keys, keys, queries, keys)

    @cached_property
    def chunks(self) -> tuple[DenseChunk, ...]:
        """Contiguous queries of one document each, with the keys that any of them reads."""
        rule = self.rule(torch.device("cpu"))
        return tuple(self._chunk(rule, span) for span in self._spans())

    def _spans(self) -> Iterator[slice]:
        blocks = self._query_slots // self.width
        _, counts = self.starts[blocks].unique_consecutive(return_counts=True)
        first = 0
        for count in counts.tolist():
            pieces = -(-count // DENSE_QUERIES)
            for piece in range(pieces):
                yield slice(first + count * piece // pieces, first + count * (piece + 1) // pieces)
            first += count

    def _chunk(self, rule: MaskMod, span: slice) -> DenseChunk:
        blocks = self._query_slots[span] // self.width
        context = torch.arange(int(self.firsts[blocks].min()), int(self.stops[blocks].max()))
        own = torch.arange(int(blocks[0]) * self.width, (int(blocks[-1]) + 1) * self.width) + self.num_context
        keys, queries = torch.cat((context, own)), torch.arange(span.start, span.stop)[:, None]
        return DenseChunk(queries=span, keys=keys, visible=rule(keys, keys, queries, keys), blind=None)

    @cached_property
    def block_mask(self) -> BlockMask:
        """The mask for flex_attention, made from the bounds of its blocks: nothing of size R · (C + N·W) is written."""
        blocks = _padded(self._query_slots // self.width)
        low, high = self.firsts[blocks].amin(1), self.stops[blocks].amax(1)
        own_low = blocks[:, 0] * self.width + self.num_context
        own_high = (blocks[:, -1] + 1) * self.width + self.num_context
        num_keys = self.num_context + len(self.starts) * self.width
        begin = torch.arange(0, num_keys, BLOCK_ELEMENTS)
        end = begin + BLOCK_ELEMENTS
        possible = (begin < high[:, None]) & (end > low[:, None])
        possible |= (begin < own_high[:, None]) & (end > own_low[:, None])
        order = possible.int().argsort(dim=-1, descending=True, stable=True)
        return BlockMask.from_kv_blocks(
            possible.sum(-1).int()[None, None].to(self.device),
            order.int()[None, None].to(self.device),
            BLOCK_SIZE=BLOCK_ELEMENTS,
            mask_mod=self.rule(self.device),
            seq_lengths=(len(self._query_slots), num_keys),
        )


def _padded(blocks: torch.Tensor) -> torch.Tensor:
    """Cut [R] into rows of as many queries as a block of flex_attention has, the last one repeated to fill its row."""
    missing = -len(blocks) % BLOCK_ELEMENTS
    return torch.cat((blocks, blocks[-1:].expand(missing))).view(-1, BLOCK_ELEMENTS)


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseVisibility(BlockVisibility):
    """The reference: every score of every query with every key, masked before a plain softmax."""

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
        scores = (queries @ keys.transpose(-1, -2)) * scale
        probs = scores.float().masked_fill(~self.dense(), -torch.inf).softmax(dim=-1)
        return probs.to(values.dtype) @ values
