"""Step 0's causal attention of short spans on a CPU: padded to like lengths, many in one call of the flash kernel.

At small widths the calls and copies of one span after the other cost more than their arithmetic.

Shapes: n queries, kv key-value heads with G query heads each, h = kv·G, C cached keys, d head size; of one group, b
spans of m queries and s keys at most.
"""

from dataclasses import dataclass

import torch

from eaglepipe.eagle.unroll.attention.blocks import (
    Attended,
    Gradients,
    SpanBySpan,
    empty_results,
    flash_backward_cpu,
    flash_forward_cpu,
    zero_gradients,
)
from eaglepipe.eagle.unroll.span_tables import PaddedSpans, SpanGroups


@dataclass(frozen=True, kw_only=True)
class Padded:
    """The attention of `SpanBySpan`, short spans in groups."""

    groups: SpanGroups
    scale: float

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `SpanBySpan.forward`."""
        output, normaliser = empty_results(queries)
        self._others.attend(queries, keys, values, output, normaliser)
        for group in self.groups.short:
            query, (key, value) = _query_heads(queries, group), _key_heads(queries, group, keys, values)
            found = flash_forward_cpu(query, key, value, group.mask.to(queries.dtype), self.scale)
            for whole, part in zip((output, normaliser), found, strict=True):
                whole.index_copy_(0, group.query_rows, _real_queries(part, group).view(-1, *whole.shape[1:]))
        return output, normaliser

    def backward(self, grad_output: torch.Tensor, attended: Attended) -> Gradients:
        """As `SpanBySpan.backward`."""
        queries, keys, values, output, normaliser = attended
        totals = zero_gradients(attended)
        self._others.add_gradients(grad_output, attended, totals)
        for group in self.groups.short:
            query, result, gradient = (_query_heads(states, group) for states in (queries, output, grad_output))
            key, value = _key_heads(queries, group, keys, values)
            padded = Attended(query, key, value, result, _padded_normaliser(normaliser, group))
            of_queries, *of_keys = flash_backward_cpu(gradient, padded, group.mask, self.scale)
            totals[0].index_copy_(0, group.query_rows, _real_queries(of_queries, group).view(-1, *queries.shape[1:]))
            for total, of_heads in zip(totals[1:], of_keys, strict=True):
                summed = of_heads.unflatten(1, queries.shape[1:3]).sum(2).transpose(1, 2).flatten(0, 1)
                total.index_add_(0, group.key_slots, summed.index_select(0, group.key_places))
        return totals

    @property
    def _others(self) -> SpanBySpan:
        rows, spans = zip(*self.groups.others, strict=True) if self.groups.others else ((), ())
        return SpanBySpan(spans=spans, scale=self.scale, rows=rows)


def _query_heads(states: torch.Tensor, group: PaddedSpans) -> torch.Tensor:
    """[n, kv, G, d] -> [b, h, m, d]."""
    picked = states.index_select(0, group.queries.flatten()).flatten(1, 2)
    return picked.unflatten(0, group.queries.shape).transpose(1, 2)


def _key_heads(queries: torch.Tensor, group: PaddedSpans, *states: torch.Tensor) -> list[torch.Tensor]:
    """Each [C, kv, d] -> [b, h, s, d], a copy for each head of queries."""
    picked = (each.index_select(0, group.keys.flatten()).unflatten(0, group.keys.shape) for each in states)
    return [each.repeat_interleave(queries.shape[2], dim=2).transpose(1, 2) for each in picked]


def _real_queries(states: torch.Tensor, group: PaddedSpans) -> torch.Tensor:
    """[b, h, m, ...] -> [q, h, ...]."""
    return states.transpose(1, 2).flatten(0, 1).index_select(0, group.query_places)


def _padded_normaliser(normaliser: torch.Tensor, group: PaddedSpans) -> torch.Tensor:
    """[n, kv, G] -> [b, h, m]; infinite for padding, whose weights and gradients are 0 then."""
    padded = normaliser.new_full((group.queries.numel(), normaliser[0].numel()), torch.inf)
    padded.index_copy_(0, group.query_places, normaliser.index_select(0, group.query_rows).flatten(1))
    return padded.view(*group.queries.shape, -1).transpose(1, 2)
