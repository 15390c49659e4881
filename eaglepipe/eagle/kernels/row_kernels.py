"""Fused passes over logits [r, D] for CUDA devices: torch.compile makes one kernel of each function.

Uncompiled they are the reference that the kernels are tried against, and the fallback if they fail.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, TypeVar

import torch

from eaglepipe.eagle.kernels.probe import agrees

Result = TypeVar("Result")


def available(logits: torch.Tensor) -> bool:
    """Return whether these functions, compiled or not, are used for such logits.

    On a CPU, passes in blocks are faster: 20 ms against 25 ms compiled, for 512 rows of 8,192 on one core.
    """
    return logits.device.type == "cuda"


def _compiled_if_it_works(function: Callable[..., Result]) -> Callable[..., Result]:
    @wraps(function)
    def call(logits: torch.Tensor, *arguments: Any) -> Result:
        works = compiled_works(logits.device, logits.shape[1])
        return (_compiled(function) if works else function)(logits, *arguments)

    return call


@_compiled_if_it_works
def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-partition, largest logit and its id, each [r], from one pass."""
    top, token = logits.max(dim=-1)
    return logits.logsumexp(dim=-1), top, token


@_compiled_if_it_works
def scaled_softmax(
    logits: torch.Tensor, log_partition: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return exp(logits - log_partition) times `scale` [r], in `dtype`."""
    return ((logits - log_partition[:, None]).exp() * scale[:, None]).to(dtype)


@_compiled_if_it_works
def dense_losses(
    logits: torch.Tensor, probs: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return cross-entropy [r] against rows `rows` [r] of `probs` [N, D], greedy tokens and the logits' gradient."""
    targets = probs.index_select(0, rows).to(logits.dtype)
    mass, log_partition = targets.sum(dim=-1), logits.logsumexp(dim=-1)
    gradient = (logits - log_partition[:, None]).exp() * mass[:, None] - targets
    losses = log_partition * mass - (logits * targets).sum(dim=-1)
    return losses, logits.argmax(dim=-1), gradient.to(dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and once more for any number of rows when that changes."""
    return torch.compile(function, fullgraph=True)


@cache
def compiled_works(device: torch.device, draft_size: int) -> bool:
    """Return whether each function compiles for D = draft_size and agrees with its uncompiled results."""
    generator = torch.Generator().manual_seed(0)
    num_rows = 5
    logits = torch.randn(num_rows, draft_size, generator=generator).to(device)
    probs = torch.randn(6, draft_size, generator=generator).softmax(-1).half().to(device)
    rows = torch.tensor([5, 0, 1, 1, 3], device=device)
    scale = torch.rand(num_rows, generator=generator).to(device)
    arguments: dict[Callable[..., Any], tuple[Any, ...]] = {
        inspect.unwrap(statistics): (logits,),
        inspect.unwrap(scaled_softmax): (logits, logits.logsumexp(-1), scale, torch.float32),
        inspect.unwrap(dense_losses): (logits, probs, rows, torch.float32),
    }

    def results(wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> tuple[torch.Tensor, ...]:
        values = (wrapped(function)(*inputs) for function, inputs in arguments.items())
        return tuple(tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,)))

    name = f"the compiled loss over {draft_size} tokens"
    return agrees(name, partial(results, _compiled), partial(results, lambda function: function), tolerance=1e-5)
