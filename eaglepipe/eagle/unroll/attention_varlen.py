"""Step 0's causal attention for all runs of queries in one launch: the varlen FlashAttention kernel of CUDA devices.

A run is a sequence of its own, whose keys are those of its document up to the run's last query; runs of one document
read keys in common, so that keys are gathered run after run. The kernel aligns the causal triangle at the last key.

Shapes: n queries, kv key-value heads with G query heads each, C cached keys, E keys gathered for all runs, R runs, d
head size.
"""

from dataclasses import dataclass
from functools import cache

import torch

from eaglepipe.eagle.kernels.probe import agrees
from eaglepipe.eagle.unroll.attention_blocks import RunByRun
from eaglepipe.eagle.unroll.slot_plan import KeySpans, Run

_MAX_HEAD_DIM = 256


def varlen_forward(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spans: KeySpans, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [n, h, d] and gathered keys and values [E, kv, d] -> output [n, h, d], log-sum-exp float32 [h, n]."""
    output, normaliser, *_ = torch.ops.aten._flash_attention_forward(
        queries,
        keys,
        values,
        spans.query_ends,
        spans.key_ends,
        spans.most_queries,
        spans.most_keys,
        0.0,
        True,
        False,
        scale=scale,
    )
    return output, normaliser


def varlen_backward(  # noqa: PLR0917 - what the kernel takes, in its order
    grad_output: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    output: torch.Tensor,
    normaliser: torch.Tensor,
    spans: KeySpans,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries [n, h, d], keys and values [E, kv, d]; no dropout, so that its random state is of no use."""
    random_state = torch.zeros(2, dtype=torch.uint64, device=queries.device)
    grads = torch.ops.aten._flash_attention_backward(
        grad_output,
        queries,
        keys,
        values,
        output,
        normaliser,
        spans.query_ends,
        spans.key_ends,
        spans.most_queries,
        spans.most_keys,
        0.0,
        True,
        random_state,
        random_state.new_empty(0),
        scale=scale,
    )
    return grads[0], grads[1], grads[2]


@dataclass(frozen=True, kw_only=True)
class Varlen:
    """A `CausalKernel` of one launch each way.

    Deterministic where `torch.use_deterministic_algorithms` asks for it, as kernel and sums are.
    """

    spans: KeySpans
    scale: float

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `CausalKernel`."""
        output, normaliser = varlen_forward(
            queries.flatten(1, 2).contiguous(), self._gather(keys), self._gather(values), self.spans, self.scale
        )
        return output.view(queries.shape), normaliser.t().unflatten(1, queries.shape[1:3]).contiguous()

    def backward(  # noqa: PLR0917 - what a flash backward takes, in its order
        self,
        grad_output: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        output: torch.Tensor,
        normaliser: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `CausalKernel`; keys that several runs read sum their gradients in float32 at least."""
        grad_queries, grad_keys, grad_values = varlen_backward(
            grad_output.flatten(1, 2),
            queries.flatten(1, 2).contiguous(),
            self._gather(keys),
            self._gather(values),
            output.flatten(1, 2),
            normaliser.flatten(1).t().contiguous(),
            self.spans,
            self.scale,
        )
        return grad_queries.view(queries.shape), self._scatter(grad_keys, keys), self._scatter(grad_values, values)

    def _gather(self, states: torch.Tensor) -> torch.Tensor:
        return states.index_select(0, self.spans.keys)

    def _scatter(self, gathered: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        wide = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
        return wide.index_add_(0, self.spans.keys, gathered.to(wide.dtype)).to(like.dtype)


@cache
def varlen_works(device: torch.device, dtype: torch.dtype, kv_heads: int, groups: int, head_dim: int) -> bool:
    """Whether the kernel is there for such heads and gives what the plain attention gives, forward and backward."""
    half = dtype in {torch.float16, torch.bfloat16}
    if device.type != "cuda" or not half or head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return False
    runs = (Run(document=0, first=3, count=5), Run(document=0, first=20, count=9), Run(document=40, first=40, count=7))
    spans, scale, num_keys = KeySpans.of(runs, device), head_dim**-0.5, 50
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, head_dim, generator=generator).to(device, dtype)

    query, grad = (random(sum(run.count for run in runs), kv_heads, groups) for _ in range(2))
    key, value = (random(num_keys, kv_heads) for _ in range(2))

    def both_ways(kernel: RunByRun | Varlen) -> tuple[torch.Tensor, ...]:
        output, normaliser = kernel.forward(query, key, value)
        return output, normaliser, *kernel.backward(grad, query, key, value, output, normaliser)

    return agrees(
        f"the varlen attention kernel ({dtype}, heads of {head_dim})",
        lambda: both_ways(Varlen(spans=spans, scale=scale)),
        lambda: both_ways(RunByRun(runs=runs, scale=scale)),
        tolerance=8 * torch.finfo(dtype).eps,
    )
