"""The attention of one TTT step for spans of slots, without ever holding [slots, keys] scores.

A kernel that returns its log-sum-exp attends to step 0's keys; the same-slot columns of later steps join through
log-sum-exp. The backward gives the kernel the joined normaliser, with which its gradients are exact.

Shapes: n queries, h heads in kv groups of G, C cached keys, d head size, k columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from eaglepipe.eagle.unroll.attention.blocks import Attended, SpanBySpan
from eaglepipe.eagle.unroll.attention.padded import Padded
from eaglepipe.eagle.unroll.attention.varlen import Varlen, varlen_works
from eaglepipe.eagle.unroll.span_tables import StepSpans

CausalKernel = SpanBySpan | Varlen | Padded


def span_attention(
    queries: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    spans: StepSpans,
    scale: float,
    *,
    window: int | None = None,
) -> torch.Tensor:
    """Take one softmax over step 0's keys up to each query, and one column for each later step, of the same slot.

    Args:
        queries: [n, h, d], span after span.
        keys, values: [C, kv, d] of step 0, then k of [n, kv, d].
        spans: where each span's queries and keys are among the C cached ones.
        window: step 0's keys that each query reads, its own included; None: all of its document up to its own.

    Returns: [n, h, d].
    """
    grouped = queries.unflatten(1, (keys[0].shape[1], -1))
    kernel = _choose_kernel(grouped, spans, scale, window)
    attended: torch.Tensor = _SpanAttention.apply(grouped, kernel, scale, len(keys) - 1, *keys, *values)
    return attended.flatten(1, 2)


def _choose_kernel(queries: torch.Tensor, spans: StepSpans, scale: float, window: int | None) -> CausalKernel:
    if window is not None and any(span.first + span.count - span.document > window for span in spans.spans):
        return SpanBySpan(spans=spans.spans, scale=scale, window=window)
    if spans.tables is not None and spans.spans and varlen_works(queries.device, queries.dtype, *queries.shape[1:]):
        return Varlen(tables=spans.tables, scale=scale)
    if spans.groups is not None:
        return Padded(groups=spans.groups, scale=scale)
    return SpanBySpan(spans=spans.spans, scale=scale)


class _SpanAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: torch.Tensor, kernel: CausalKernel, scale: float, num_columns: int, *states: torch.Tensor
    ) -> torch.Tensor:
        """`queries` [n, kv, G, d]; `states`: keys of step 0 and the columns, then values likewise."""
        keys, values = states[: num_columns + 1], states[num_columns + 1 :]
        output, normaliser = kernel.forward(queries, keys[0], values[0])
        weights = _add_columns(queries, keys[1:], values[1:], scale, output, normaliser)
        ctx.kernel, ctx.scale, ctx.num_columns = kernel, scale, num_columns
        ctx.save_for_backward(queries, output, normaliser, weights, *states)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        queries, output, normaliser, weights, *states = ctx.saved_tensors
        keys, values = states[: ctx.num_columns + 1], states[ctx.num_columns + 1 :]
        grad_output = grads[0].contiguous()
        attended = Attended(queries, keys[0], values[0], output, normaliser)
        grad_queries, grad_keys, grad_values = ctx.kernel.backward(grad_output, attended)
        grads_of_keys, grads_of_values = [grad_keys], [grad_values]
        if ctx.num_columns:
            delta = (grad_output * output).sum(-1, keepdim=True)
            grad_weights = _same_slot_products(grad_output, values[1:])
            grad_scores = (weights * (grad_weights - delta) * ctx.scale).to(queries.dtype)
            shares = weights.to(queries.dtype)
            for column, key in enumerate(keys[1:]):
                grad_queries.addcmul_(grad_scores[..., column, None], key[:, :, None])
                grads_of_keys.append(_sum_of_groups(grad_scores[..., column], queries))
                grads_of_values.append(_sum_of_groups(shares[..., column], grad_output))
        return grad_queries, None, None, None, *grads_of_keys, *grads_of_values


def _add_columns(  # noqa: PLR0917
    queries: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    scale: float,
    output: torch.Tensor,
    normaliser: torch.Tensor,
) -> torch.Tensor:
    """Let k same-slot columns join `output` and `normaliser`, in place; returns the columns' shares [n, kv, G, k]."""
    if not keys:
        return normaliser.new_empty(*normaliser.shape, 0)
    scores = _same_slot_products(queries, keys).to(normaliser.dtype) * scale
    block_norm = normaliser.clone()
    torch.logaddexp(block_norm, scores.logsumexp(-1), out=normaliser)
    weights = (scores - normaliser[..., None]).exp_()
    output.mul_((block_norm - normaliser).exp_()[..., None].to(output.dtype))
    for weight, value in zip(weights.to(output.dtype).unbind(-1), values, strict=True):
        output.addcmul_(weight[..., None], value[:, :, None])
    return weights


def _same_slot_products(states: torch.Tensor, columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """States [n, kv, G, d] times each of k columns [n, kv, d] of the same slot: [n, kv, G, k]."""
    return states @ torch.stack(tuple(columns), dim=-2).transpose(-1, -2)


def _sum_of_groups(weights: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """sum over G of weights [n, kv, G] · states [n, kv, G, d]: [n, kv, d]."""
    total = weights[:, :, 0, None] * states[:, :, 0]
    for group in range(1, states.shape[2]):
        total.addcmul_(weights[:, :, group, None], states[:, :, group])
    return total
