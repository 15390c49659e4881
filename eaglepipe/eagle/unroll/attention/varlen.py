"""Step 0's causal attention for all spans of queries in one launch: the varlen FlashAttention kernel of CUDA devices.

A span is a sequence of its own, whose keys are those of its document up to the span's last query; spans of one document
read keys in common, so that keys are gathered span after span. The kernel aligns the causal triangle at the last key.

Shapes: n queries, kv key-value heads with G query heads each, h = kv·G, C cached keys, E keys gathered for all spans, d
head size.
"""

from dataclasses import dataclass
from functools import cache

import torch

from eaglepipe.eagle.kernels.probe import agrees
from eaglepipe.eagle.unroll.attention.blocks import Attended, Gradients, SpanBySpan
from eaglepipe.eagle.unroll.span_tables import SlotSpan, VarlenTables

_MAX_HEAD_DIM = 256


def varlen_forward(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tables: VarlenTables, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend queries [n, h, d] to gathered [E, kv, d]; return output [n, h, d] and log-sum-exp float32 [h, n]."""
    output, normaliser, *_ = torch.ops.aten._flash_attention_forward(
        queries, keys, values, *tables.bounds, 0.0, True, False, scale=scale
    )
    return output, normaliser


def varlen_backward(grad_output: torch.Tensor, attended: Attended, tables: VarlenTables, scale: float) -> Gradients:
    """Return the gradients of queries [n, h, d], keys and values [E, kv, d], given what `varlen_forward` returned."""
    unused = torch.zeros(2, dtype=torch.uint64, device=grad_output.device)  # the random state of a dropout of 0
    grads = torch.ops.aten._flash_attention_backward(
        grad_output, *attended, *tables.bounds, 0.0, True, unused, unused.new_empty(0), scale=scale
    )
    return grads[0], grads[1], grads[2]


@dataclass(frozen=True, kw_only=True)
class Varlen:
    """The attention of `SpanBySpan` in one launch each way.

    Deterministic if `torch.use_deterministic_algorithms` asks for it, as kernel and sums are.
    """

    tables: VarlenTables
    scale: float

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `SpanBySpan.forward`."""
        output, normaliser = varlen_forward(
            queries.flatten(1, 2).contiguous(), self._gather(keys), self._gather(values), self.tables, self.scale
        )
        return output.view(queries.shape), normaliser.t().unflatten(1, queries.shape[1:3]).contiguous()

    def backward(self, grad_output: torch.Tensor, attended: Attended) -> Gradients:
        """As `SpanBySpan.backward`; keys that several spans read sum their gradients in float32 at least."""
        queries, keys, values, output, normaliser = attended
        gathered = Attended(
            queries.flatten(1, 2).contiguous(),
            self._gather(keys),
            self._gather(values),
            output.flatten(1, 2),
            normaliser.flatten(1).t().contiguous(),
        )
        grad_queries, grad_keys, grad_values = varlen_backward(
            grad_output.flatten(1, 2), gathered, self.tables, self.scale
        )
        return grad_queries.view(queries.shape), self._scatter(grad_keys, keys), self._scatter(grad_values, values)

    def _gather(self, states: torch.Tensor) -> torch.Tensor:
        return states.index_select(0, self.tables.keys)

    def _scatter(self, gathered: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        wide = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        return wide.index_add_(0, self.tables.keys, gathered.to(wide.dtype)).to(like.dtype)


@cache
def varlen_works(device: torch.device, dtype: torch.dtype, kv_heads: int, groups: int, head_dim: int) -> bool:
    """Return whether the kernel exists for such heads and agrees with the plain attention, forward and backward."""
    half = dtype in {torch.float16, torch.bfloat16}
    if device.type != "cuda" or not half or head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return False
    spans = tuple(SlotSpan(document=d, first=f, count=c) for d, f, c in ((0, 3, 5), (0, 20, 9), (40, 40, 7)))
    scale, num_keys = head_dim**-0.5, 50
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, head_dim, generator=generator).to(device, dtype)

    query, grad = (random(sum(span.count for span in spans), kv_heads, groups) for _ in range(2))
    key, value = (random(num_keys, kv_heads) for _ in range(2))

    def both_ways(kernel: SpanBySpan | Varlen) -> tuple[torch.Tensor, ...]:
        output, normaliser = kernel.forward(query, key, value)
        return output, normaliser, *kernel.backward(grad, Attended(query, key, value, output, normaliser))

    return agrees(
        f"the varlen attention kernel ({dtype}, heads of {head_dim})",
        lambda: both_ways(Varlen(tables=VarlenTables.of(spans, device), scale=scale)),
        lambda: both_ways(SpanBySpan(spans=spans, scale=scale)),
        tolerance=8 * torch.finfo(dtype).eps,
    )
