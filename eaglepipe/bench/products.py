"""Matrix products of the compact path, derived from its plan: counted as FLOP, and run alone as a lower bound.

Forward and backward of each product are counted and run as often as the path runs them. The buffers stay warm, and
nothing but products happens, so that the bound errs on the low side.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from eaglepipe.eagle.unroll.slot_plan import UnrollPlan

_QUERY_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class LinearProducts:
    """y = x @ w.T for x [rows, inner], w [columns, inner], then the gradient of w and, unless x takes none, of x."""

    rows: int
    inner: int
    columns: int
    input_gradient: bool = True

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns * (3 if self.input_gradient else 2)


@dataclass(frozen=True, kw_only=True)
class AttentionProducts:
    """Scores and outputs of one span of queries over step 0's keys; the backward computes the scores again.

    Two products forward and five backward, over `before` keys of earlier slots and the span's own triangle.
    """

    queries: int
    before: int
    heads: int
    head_dim: int

    @property
    def flops(self) -> int:
        pairs = self.queries * self.before + self.queries * (self.queries + 1) // 2
        return 7 * 2 * pairs * self.heads * self.head_dim


Products = LinearProducts | AttentionProducts


def unroll_products(config: Any, plan: UnrollPlan, *, head_chunk_rows: int) -> list[Products]:
    """Return all products of one batch through a draft of one layer, forward and backward.

    Args:
        config: the draft's; its embeddings are frozen, its aux states take no gradient.
    """
    assert config.num_hidden_layers == 1, "only the compact path of one layer is counted"
    width, ffn = config.hidden_size, config.intermediate_size
    heads, head_dim = config.num_attention_heads, config.head_dim
    queries, keys_values = heads * head_dim, 2 * config.num_key_value_heads * head_dim
    aux_width = config.num_aux_hidden_states * config.target_hidden_size
    num_cached, num_active = len(plan.cached), len(plan.active)
    products: list[Products] = [
        LinearProducts(rows=num_cached, inner=aux_width, columns=width, input_gradient=bool(config.fc_norm)),
        LinearProducts(rows=num_active, inner=width, columns=queries),
        LinearProducts(rows=num_cached, inner=width, columns=keys_values),
    ]
    for index, step in enumerate(plan.steps):
        rows = len(step.slots)
        products.append(LinearProducts(rows=rows if index else num_cached, inner=width, columns=keys_values))
        products.append(LinearProducts(rows=rows, inner=width, columns=queries))
        products += [
            AttentionProducts(queries=span.count, before=span.first - span.document, heads=heads, head_dim=head_dim)
            for span in step.spans.spans
        ]
        products.append(LinearProducts(rows=rows, inner=queries, columns=width))
        products += [LinearProducts(rows=rows, inner=width, columns=ffn)] * 2
        products.append(LinearProducts(rows=rows, inner=ffn, columns=width))
    num_losses = sum(len(step.rows) for step in plan.steps)
    head = LinearProducts(rows=head_chunk_rows, inner=width, columns=config.draft_vocab_size)
    products += [head] * (num_losses // head_chunk_rows)
    products.append(replace(head, rows=num_losses % head_chunk_rows))
    return [product for product in products if product.flops]


class ProductRunner:
    """Runs products on buffers that are made once; their values do not matter, but are finite."""

    def __init__(self, products: Sequence[Products], *, device: torch.device, dtype: torch.dtype) -> None:
        self._products = products
        sizes = [max(roles) for roles in zip((0,) * 5, *map(_buffer_sizes, products), strict=True)]
        self._buffers = [torch.full((size,), 1e-3, device=device, dtype=dtype) for size in sizes]

    def __call__(self) -> None:
        for products in self._products:
            if isinstance(products, LinearProducts):
                self._linear(products)
            else:
                for rows, keys in _blocks(products):
                    self._attend(products.heads, rows, keys, products.head_dim)

    def _linear(self, product: LinearProducts) -> None:
        rows, inner, columns = product.rows, product.inner, product.columns
        shapes = ((rows, inner), (columns, inner), (rows, columns), (rows, inner), (columns, inner))
        x, weight, y, grad_x, grad_weight = self._views(shapes)
        torch.mm(x, weight.t(), out=y)
        torch.mm(y.t(), x, out=grad_weight)
        if product.input_gradient:
            torch.mm(y, weight, out=grad_x)

    def _attend(self, heads: int, rows: int, keys: int, head_dim: int) -> None:
        row_shape, key_shape, scores_shape = (heads, rows, head_dim), (heads, keys, head_dim), (heads, rows, keys)
        query, key, scores, grad_rows, grad_keys = self._views(
            (row_shape, key_shape, scores_shape, row_shape, key_shape)
        )
        for _ in range(3):  # scores, scores again, gradient of the weights
            torch.bmm(query, key.transpose(1, 2), out=scores)
        for _ in range(2):  # output, gradient of the queries
            torch.bmm(scores, key, out=grad_rows)
        for _ in range(2):  # gradients of keys and values
            torch.bmm(scores.transpose(1, 2), query, out=grad_keys)

    def _views(self, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        return [buffer[: math.prod(shape)].view(shape) for buffer, shape in zip(self._buffers, shapes, strict=True)]


def _buffer_sizes(products: Products) -> tuple[int, int, int, int, int]:
    if isinstance(products, LinearProducts):
        input_size, weight_size = products.rows * products.inner, products.columns * products.inner
        return input_size, weight_size, products.rows * products.columns, input_size, weight_size
    width = products.heads * products.head_dim
    rows = min(products.queries, _QUERY_BLOCK)
    keys = products.before + products.queries
    return rows * width, keys * width, rows * keys * products.heads, rows * width, keys * width


def _blocks(products: AttentionProducts) -> Iterator[tuple[int, int]]:
    """Yield the numbers of queries and keys of each block; keys beyond a block's last query are left out."""
    for start in range(0, products.queries, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, products.queries)
        yield end - start, products.before + end
