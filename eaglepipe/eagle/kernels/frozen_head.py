"""Soft cross-entropy of drafted features through the target's frozen lm_head, in chunks of rows.

Logits [rows, V] of draft and target live for one chunk; the gradient of the drafted features is finished in forward.
Shapes: R rows, H hidden, V target vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from eaglepipe.eagle.kernels.one_backward import scaled, take_gradients
from eaglepipe.eagle.losses import soft_cross_entropy
from eaglepipe.target_head import HALF_TYPES, TargetHead


@torch.no_grad()
def head_argmax(hidden: torch.Tensor, head: TargetHead, chunk_rows: int) -> torch.Tensor:
    """[R, H] -> the likeliest token, int64 [R]."""
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.cat([head.finish(_product(rows, head)).argmax(dim=-1) for rows in hidden.split(chunk_rows)])


def _product(hidden: torch.Tensor, head: TargetHead) -> torch.Tensor:
    """`head.product` without a gradient, narrowed to the head's half type on CUDA."""
    hidden = hidden.detach()
    is_narrow = hidden.is_cuda and head.weight.dtype in HALF_TYPES
    return head.product(hidden.to(head.weight.dtype) if is_narrow else hidden)


@dataclass(frozen=True, kw_only=True)
class FrozenHeadLoss:
    """`loss_sum`, which alone carries a gradient, and the likeliest tokens of draft and target."""

    loss_sum: torch.Tensor  # float32, no dimensions
    predicted: torch.Tensor  # int64 [R]
    target_top1: torch.Tensor  # int64 [R]


def frozen_head_loss(
    hidden: torch.Tensor, target_hidden: torch.Tensor, head: TargetHead, *, chunk_rows: int
) -> FrozenHeadLoss:
    """Return sum_r CE(softmax(head(target_hidden[r])), head(hidden[r])) over the whole vocabulary, float32.

    Args:
        hidden: [R, H], drafted; gets the gradient.
        target_hidden: [R, H], the target's.
    """
    loss_sum, predicted, target_top1 = _FrozenHeadLoss.apply(
        hidden, target_hidden, head, chunk_rows, torch.is_grad_enabled()
    )
    return FrozenHeadLoss(loss_sum=loss_sum, predicted=predicted, target_top1=target_top1)


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - what autograd.Function passes on
        ctx: Any,
        hidden: torch.Tensor,
        target_hidden: torch.Tensor,
        head: TargetHead,
        chunk_rows: int,
        wants_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        gradient = torch.zeros_like(hidden) if wants_gradient and ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        predicted = torch.empty(len(hidden), dtype=torch.int64, device=hidden.device)
        target_top1 = torch.empty_like(predicted)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), chunk_rows):
                span = slice(start, start + chunk_rows)
                target_logits = head.finish(_product(target_hidden[span], head))
                target_top1[span] = target_logits.argmax(dim=-1)
                product = _product(hidden[span], head).requires_grad_(gradient is not None)
                with torch.set_grad_enabled(gradient is not None):
                    logits = head.finish(product)
                    loss = soft_cross_entropy(logits, target_logits.softmax(dim=-1)).sum()
                total += loss.detach()
                predicted[span] = logits.detach().argmax(dim=-1)
                if gradient is not None:
                    (of_product,) = torch.autograd.grad(loss, product)
                    gradient[span] = (of_product.to(head.weight.dtype) @ head.weight).to(gradient.dtype)
        ctx.gradients = (gradient,)
        ctx.mark_non_differentiable(predicted, target_top1)
        return total, predicted, target_top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = take_gradients(ctx)
        return scaled(gradient, grads[0]), None, None, None, None
