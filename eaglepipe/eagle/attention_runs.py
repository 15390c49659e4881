"""The attention of one TTT step for runs of slots, without ever holding [slots, keys] scores.

Each run's causal block goes through a flash kernel that returns its log-sum-exp; the same-slot columns of later steps
join through log-sum-exp. The backward gives the kernel the joined normaliser, with which its gradients are exact.

Shapes: n queries, h heads in kv groups of G, C cached keys, d head size, k columns.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from eaglepipe.eagle.plan import Run

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def run_attention(
    queries: torch.Tensor,
    keys: Sequence[torch.Tensor],
    values: Sequence[torch.Tensor],
    runs: Sequence[Run],
    scale: float,
) -> torch.Tensor:
    """One softmax over step 0's keys up to each query, and one column for each later step, of the same slot.

    Args:
        queries: [n, h, d], run after run.
        keys, values: [C, kv, d] of step 0, then k of [n, kv, d].
        runs: where each run's queries and keys are among the C cached ones.

    Returns: [n, h, d].
    """
    grouped = queries.unflatten(1, (keys[0].shape[1], -1))
    attended: torch.Tensor = _RunAttention.apply(grouped, tuple(runs), scale, len(keys) - 1, *keys, *values)
    return attended.flatten(1, 2)


class _RunAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: torch.Tensor, runs: tuple[Run, ...], scale: float, num_columns: int, *states: torch.Tensor
    ) -> torch.Tensor:
        """`queries` [n, kv, G, d]; `states`: keys of step 0 and the columns, then values likewise."""
        keys, values = states[: num_columns + 1], states[num_columns + 1 :]
        output = torch.empty_like(queries, memory_format=torch.contiguous_format)
        normaliser = queries.new_empty(queries.shape[:-1], dtype=torch.promote_types(queries.dtype, torch.float32))
        for span, blocks in _blocks(runs):
            parts = [
                _block_forward(queries[span], keys[0][block], values[0][block], causal, scale)
                for block, causal in blocks
            ]
            _merge(parts, output[span], normaliser[span])
        weights = _add_columns(queries, keys[1:], values[1:], scale, output, normaliser)
        ctx.runs, ctx.scale, ctx.num_columns = runs, scale, num_columns
        ctx.save_for_backward(queries, output, normaliser, weights, *states)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        queries, output, normaliser, weights, *states = ctx.saved_tensors
        keys, values = states[: ctx.num_columns + 1], states[ctx.num_columns + 1 :]
        grad_output = grads[0].contiguous()
        grad_queries = torch.zeros_like(queries)
        grad_keys, grad_values = torch.zeros_like(keys[0]), torch.zeros_like(values[0])
        for span, blocks in _blocks(ctx.runs):
            for block, causal in blocks:
                grad_query, grad_key, grad_value = _block_backward(
                    grad_output[span],
                    queries[span],
                    keys[0][block],
                    values[0][block],
                    output[span],
                    normaliser[span],
                    causal,
                    ctx.scale,
                )
                grad_queries[span] += grad_query
                grad_keys[block] += grad_key
                grad_values[block] += grad_value
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


def _blocks(runs: Sequence[Run]) -> Iterator[tuple[slice, list[tuple[slice, bool]]]]:
    """Each run's queries, and its blocks of cached keys: the triangle of the run itself, and all before it."""
    offset = 0
    for run in runs:
        blocks = [(slice(run.first, run.first + run.count), True)]
        if run.first > run.document:
            blocks.append((slice(run.document, run.first), False))
        yield slice(offset, offset + run.count), blocks
        offset += run.count


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


def _heads_first(states: torch.Tensor) -> torch.Tensor:
    """[m, kv, G, d] -> [kv, G, m, d]."""
    return states.permute(1, 2, 0, 3)


def _block_heads(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [m, kv, G, d] -> [kv, G, m, d]; keys and values [s, kv, d] -> [kv, G, s, d], shared without a copy."""
    key, value = (states[:, :, None].expand(-1, -1, queries.shape[2], -1) for states in (keys, values))
    return _heads_first(queries), _heads_first(key), _heads_first(value)


def _block_forward(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [m, kv, G, d] over keys [s, kv, d] -> output [m, kv, G, d], log-sum-exp [m, kv, G]."""
    forward = _flash_forward_cpu if queries.device.type == "cpu" else _plain_forward
    output, normaliser = forward(*_block_heads(queries, keys, values), causal, scale)
    return output.permute(2, 0, 1, 3), normaliser.permute(2, 0, 1)


def _block_backward(  # noqa: PLR0917 - what a flash backward takes, in its order
    grad_output: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    normaliser: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of one block inside a softmax that `output` and `normaliser` are the whole of."""
    heads = _block_heads(queries, keys, values)
    whole = (_heads_first(output), normaliser.permute(1, 2, 0))
    backward = _flash_backward_cpu if queries.device.type == "cpu" else _plain_backward
    grad_query, grad_key, grad_value = backward(_heads_first(grad_output), *heads, *whole, causal, scale)
    return grad_query.permute(2, 0, 1, 3), grad_key.sum(1).transpose(0, 1), grad_value.sum(1).transpose(0, 1)


def _flash_forward_cpu(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    output, normaliser = _flash(queries, keys, values, 0.0, causal, scale=scale)
    return output, normaliser


def _flash_backward_cpu(  # noqa: PLR0917
    grad_output: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    normaliser: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grads = _flash_backward(grad_output, queries, keys, values, output, normaliser, 0.0, causal, scale=scale)
    return grads[0], grads[1], grads[2]


def _scores(queries: torch.Tensor, keys: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
    scores = (queries @ keys.transpose(-1, -2)).to(torch.promote_types(queries.dtype, torch.float32)) * scale
    if not causal:
        return scores
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, -torch.inf)


def _plain_forward(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = _scores(queries, keys, causal, scale)
    return scores.softmax(-1).to(values.dtype) @ values, scores.logsumexp(-1)


def _plain_backward(  # noqa: PLR0917
    grad_output: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    normaliser: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weights = (_scores(queries, keys, causal, scale) - normaliser[..., None]).exp_()
    delta = (grad_output * output).sum(-1, keepdim=True)
    grad_scores = weights * (grad_output @ values.transpose(-1, -2) - delta) * scale
    grad_scores, weights = grad_scores.to(queries.dtype), weights.to(queries.dtype)
    return grad_scores @ keys, grad_scores.transpose(-1, -2) @ queries, weights.transpose(-1, -2) @ grad_output
