"""Soft cross-entropy of drafted features through the target's frozen lm_head, in chunks of rows.

Logits [rows, V] of draft and target live for one chunk; the gradient of the drafted features is finished in forward.
Shapes: R rows, H hidden, V target vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch

from eaglepipe.eagle.losses import soft_cross_entropy

_HALF_TYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class FrozenHead:
    """`logits = soft_cap·tanh(s / soft_cap)` with `s = logit_scale · (hidden @ weight.T + bias)`; None: no cap."""

    weight: torch.Tensor  # [V, H]
    bias: torch.Tensor | None = None  # [V]
    logit_scale: float = 1.0
    soft_cap: float | None = None

    def raw(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden @ weight.T, float32 [R, V]; no gradient."""
        hidden = hidden.detach()
        if hidden.is_cuda and self.weight.dtype in _HALF_TYPES:
            return torch.mm(hidden.to(self.weight.dtype), self.weight.T, out_dtype=torch.float32)
        return hidden.float() @ self.weight.float().T

    def finish(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw products -> the target's logits."""
        scaled = self.logit_scale * (raw if self.bias is None else raw + self.bias.float())
        return scaled if self.soft_cap is None else torch.tanh(scaled / self.soft_cap) * self.soft_cap

    @torch.no_grad()
    def argmax(self, hidden: torch.Tensor, chunk_rows: int) -> torch.Tensor:
        """[R, H] -> the likeliest token, int64 [R]."""
        with torch.autocast(hidden.device.type, enabled=False):
            found = [self.finish(self.raw(rows)).argmax(dim=-1) for rows in hidden.split(chunk_rows)]
        return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class FrozenHeadLoss:
    """`loss_sum`, which alone carries a gradient, and the likeliest tokens of draft and target."""

    loss_sum: torch.Tensor  # float32, no dimensions
    predicted: torch.Tensor  # int64 [R]
    target_top1: torch.Tensor  # int64 [R]


def frozen_head_loss(
    hidden: torch.Tensor, target_hidden: torch.Tensor, head: FrozenHead, *, chunk_rows: int
) -> FrozenHeadLoss:
    """sum_r CE(softmax(head(target_hidden[r])), head(hidden[r])), over the whole vocabulary, float32.

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
        head: FrozenHead,
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
                target_logits = head.finish(head.raw(target_hidden[span]))
                target_top1[span] = target_logits.argmax(dim=-1)
                raw = head.raw(hidden[span]).requires_grad_(gradient is not None)
                with torch.set_grad_enabled(gradient is not None):
                    logits = head.finish(raw)
                    loss = soft_cross_entropy(logits, target_logits.softmax(dim=-1)).sum()
                total += loss.detach()
                predicted[span] = logits.detach().argmax(dim=-1)
                if gradient is not None:
                    (of_raw,) = torch.autograd.grad(loss, raw)
                    gradient[span] = (of_raw.to(head.weight.dtype) @ head.weight).to(gradient.dtype)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(predicted, target_top1)
        return total, predicted, target_top1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        assert ctx.gradient is not None, "the frozen head's gradient is gone after one backward"
        scaled, ctx.gradient = ctx.gradient.mul_(grads[0]), None
        return scaled, None, None, None, None
