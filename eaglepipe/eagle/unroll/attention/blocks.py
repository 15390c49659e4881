"""Step 0's causal attention, one span of queries after the other: by a flash kernel on a CPU, plainly elsewhere.

Shapes: n queries, kv key-value heads with G query heads each, C cached keys, d head size; m and s: of one block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch

from eaglepipe.eagle.unroll.span_tables import SlotSpan

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Attended(NamedTuple):
    """An attention's inputs and results, in the order in which flash backwards take them."""

    queries: torch.Tensor  # [n, kv, G, d]
    keys: torch.Tensor  # [C, kv, d]
    values: torch.Tensor  # [C, kv, d]
    output: torch.Tensor  # [n, kv, G, d]
    normaliser: torch.Tensor  # [n, kv, G], natural log-sum-exp, float32 at least


Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of queries, keys and values."""
Mask = bool | torch.Tensor
"""Of a block: causal, everything, or what is added to its scores, [1, 1, m, s] or a batch of them."""
PLAIN_SCORES = 2**28
"""Scores that exist at once where no kernel computes them: 1 GiB in float32."""
WINDOWED_QUERIES = 512
"""Queries under a window whose mask is written out at once."""


@dataclass(frozen=True, kw_only=True)
class SpanBySpan:
    """Attention of spans of queries to step 0's keys and values, up to each query's own, on every device."""

    spans: tuple[SlotSpan, ...]
    scale: float
    window: int | None = None  # slots that a query reads, its own included; None: all
    rows: tuple[int, ...] | None = None  # of each span's first query; None: one span after the other

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend queries [n, kv, G, d] to [C, kv, d]; return the output and the normaliser of an `Attended`."""
        output, normaliser = empty_results(queries)
        self.attend(queries, keys, values, output, normaliser)
        return output, normaliser

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        output: torch.Tensor,
        normaliser: torch.Tensor,
    ) -> None:
        """As `forward`, into the rows of these spans."""
        for rows, blocks in self._blocks(queries):
            parts = [
                _block_forward(queries[rows], keys[block], values[block], causal, self.scale)
                for block, causal in blocks
            ]
            _merge(parts, output[rows], normaliser[rows])

    def backward(self, grad_output: torch.Tensor, attended: Attended) -> Gradients:
        """Return the gradients inside a softmax whose whole are the `output` and `normaliser` of `attended`."""
        totals = zero_gradients(attended)
        self.add_gradients(grad_output, attended, totals)
        return totals

    def add_gradients(self, grad_output: torch.Tensor, attended: Attended, totals: Gradients) -> None:
        """As `backward`, added to `totals`."""
        queries, keys, values, output, normaliser = attended
        for rows, blocks in self._blocks(queries):
            for block, causal in blocks:
                part = Attended(queries[rows], keys[block], values[block], output[rows], normaliser[rows])
                gradients = _block_backward(grad_output[rows], part, causal, self.scale)
                for total, places, gradient in zip(totals, (rows, block, block), gradients, strict=True):
                    total[places] += gradient

    def _blocks(self, queries: torch.Tensor) -> Iterator[tuple[slice, list[tuple[slice, Mask]]]]:
        """Yield each span's queries, and its blocks of cached keys: the triangle of the span itself, and all before it.

        With a window, pieces of a span and one block of keys each.
        """
        firsts = accumulate((span.count for span in self.spans), initial=0) if self.rows is None else self.rows
        for offset, span in zip(firsts, self.spans, strict=False):
            stop = span.first + span.count
            if self.window is None or stop - span.document <= self.window:
                yield from _causal_blocks(span, offset, queries_at_once(queries, span))
            else:
                yield from _windowed_blocks(span, offset, self.window, queries)


def empty_results(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return room for the output [n, kv, G, d] and the normaliser [n, kv, G] of queries."""
    output = torch.empty_like(queries, memory_format=torch.contiguous_format)
    return output, queries.new_empty(queries.shape[:-1], dtype=torch.promote_types(queries.dtype, torch.float32))


def zero_gradients(attended: Attended) -> Gradients:
    """Return zeros for queries, keys and values."""
    return torch.zeros_like(attended.queries), torch.zeros_like(attended.keys), torch.zeros_like(attended.values)


def queries_at_once(queries: torch.Tensor, span: SlotSpan) -> int:
    """Return the queries of a span that are computed together: all of them, unless their scores are written out."""
    if queries.device.type == "cpu":
        return span.count
    heads, keys = queries.shape[1:3].numel(), span.first + span.count - span.document
    return max(1, PLAIN_SCORES // max(1, heads * keys))


def _causal_blocks(span: SlotSpan, offset: int, num_queries: int) -> Iterator[tuple[slice, list[tuple[slice, Mask]]]]:
    stop = span.first + span.count
    for first in range(span.first, stop, num_queries):
        last = min(first + num_queries, stop)
        blocks: list[tuple[slice, Mask]] = [(slice(first, last), True)]
        if first > span.document:
            blocks.append((slice(span.document, first), False))
        yield slice(offset + first - span.first, offset + last - span.first), blocks


def _windowed_blocks(
    span: SlotSpan, offset: int, window: int, queries: torch.Tensor
) -> Iterator[tuple[slice, list[tuple[slice, Mask]]]]:
    stop = span.first + span.count
    for first in range(span.first, stop, WINDOWED_QUERIES):
        last = min(first + WINDOWED_QUERIES, stop)
        keys = slice(max(span.document, first - window + 1), last)
        distance = torch.arange(first, last)[:, None] - torch.arange(keys.start, keys.stop)
        mask = torch.zeros(1, 1, *distance.shape, dtype=queries.dtype)
        mask.masked_fill_((distance < 0) | (distance >= window), -torch.inf)
        rows = slice(offset + first - span.first, offset + last - span.first)
        yield rows, [(keys, mask.to(queries.device))]


def _merge(parts: list[tuple[torch.Tensor, torch.Tensor]], output: torch.Tensor, normaliser: torch.Tensor) -> None:
    """Write the softmax over all parts' keys into `output` and `normaliser`."""
    (first, first_norm), *others = parts
    if not others:
        output.copy_(first)
        normaliser.copy_(first_norm)
        return
    ((second, second_norm),) = others
    torch.logaddexp(first_norm, second_norm, out=normaliser)
    output.copy_(first * (first_norm - normaliser).exp()[..., None].to(first.dtype))
    output.addcmul_(second, (second_norm - normaliser).exp()[..., None].to(second.dtype))


def _heads_first(states: torch.Tensor) -> torch.Tensor:
    """[m, kv, G, d] -> [kv, G, m, d]."""
    return states.permute(1, 2, 0, 3)


def _block_heads(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Gradients:
    """Queries [m, kv, G, d] -> [kv, G, m, d]; keys and values [s, kv, d] -> [kv, G, s, d], shared without a copy."""
    key, value = (states[:, :, None].expand(-1, -1, queries.shape[2], -1) for states in (keys, values))
    return _heads_first(queries), _heads_first(key), _heads_first(value)


def _block_forward(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: Mask, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [m, kv, G, d] over keys [s, kv, d] -> output [m, kv, G, d], log-sum-exp [m, kv, G]."""
    forward = flash_forward_cpu if queries.device.type == "cpu" else _plain_forward
    output, normaliser = forward(*_block_heads(queries, keys, values), causal, scale)
    return output.permute(2, 0, 1, 3), normaliser.permute(2, 0, 1)


def _block_backward(grad_output: torch.Tensor, block: Attended, causal: Mask, scale: float) -> Gradients:
    """Return the gradients of one block inside a softmax whose whole are its `output` and `normaliser`."""
    heads = _block_heads(block.queries, block.keys, block.values)
    attended = Attended(*heads, _heads_first(block.output), block.normaliser.permute(1, 2, 0))
    backward = flash_backward_cpu if grad_output.device.type == "cpu" else _plain_backward
    grad_query, grad_key, grad_value = backward(_heads_first(grad_output), attended, causal, scale)
    return grad_query.permute(2, 0, 1, 3), grad_key.sum(1).transpose(0, 1), grad_value.sum(1).transpose(0, 1)


def flash_forward_cpu(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: Mask, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    output, normaliser = _flash(queries, keys, values, 0.0, causal is True, attn_mask=_added(causal), scale=scale)
    return output, normaliser


def flash_backward_cpu(grad_output: torch.Tensor, attended: Attended, causal: Mask, scale: float) -> Gradients:
    """Run in float32, whatever the inputs: in bfloat16 the kernel takes six times as long."""
    wide = Attended(*(tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in attended))
    mask = None if (added := _added(causal)) is None else added.to(wide.queries.dtype)
    gradients = _flash_backward(
        grad_output.to(wide.queries.dtype), *wide, 0.0, causal is True, attn_mask=mask, scale=scale
    )
    grad_queries, grad_keys, grad_values = (gradient.to(grad_output.dtype) for gradient in gradients)
    return grad_queries, grad_keys, grad_values


def _added(mask: Mask) -> torch.Tensor | None:
    return mask if isinstance(mask, torch.Tensor) else None


def _scores(queries: torch.Tensor, keys: torch.Tensor, causal: Mask, scale: float) -> torch.Tensor:
    scores = (queries @ keys.transpose(-1, -2)).to(torch.promote_types(queries.dtype, torch.float32)) * scale
    if isinstance(causal, torch.Tensor):
        return scores + causal
    if not causal:
        return scores
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -torch.inf)


def _plain_forward(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: Mask, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = _scores(queries, keys, causal, scale)
    return scores.softmax(-1).to(values.dtype) @ values, scores.logsumexp(-1)


def _plain_backward(grad_output: torch.Tensor, attended: Attended, causal: Mask, scale: float) -> Gradients:
    queries, keys, values, output, normaliser = attended
    weights = (_scores(queries, keys, causal, scale) - normaliser[..., None]).exp_()
    delta = (grad_output * output).sum(-1, keepdim=True)
    grad_scores = weights * (grad_output @ values.transpose(-1, -2) - delta) * scale
    grad_scores, weights = grad_scores.to(queries.dtype), weights.to(queries.dtype)
    return grad_scores @ keys, grad_scores.transpose(-1, -2) @ queries, weights.transpose(-1, -2) @ grad_output
