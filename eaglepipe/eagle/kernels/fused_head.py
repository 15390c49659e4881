"""lm_head and soft cross-entropy in chunks of rows: logits live for one chunk, their gradient replaces them in place.

The gradients of hidden states and weight are finished in the forward, so that the head runs once for all TTT steps and
no step's logits are kept or computed again.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from eaglepipe.eagle.kernels import row_kernels
from eaglepipe.eagle.kernels.one_backward import scaled, take_gradients
from eaglepipe.eagle.kernels.probe import agrees
from eaglepipe.eagle.kernels.row_ops import RowLosses, exponentials_in_place, row_blocks, row_dots, take_rows
from eaglepipe.target_head import HALF_TYPES


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """R rows: the weighted loss, which alone carries a gradient, each row's own loss, and its greedy draft token."""

    loss: torch.Tensor  # float32, no dimensions
    row_losses: torch.Tensor  # float32 [R]
    predicted: torch.Tensor  # int64 [R]


class TargetRows(Protocol):
    """N rows of targets over D draft tokens, dense or sparse."""

    def losses(self, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
        """Return losses against target rows `rows` [r], the gradient in `dtype`; `logits` [r, D] are overwritten."""
        ...


@dataclass(frozen=True, kw_only=True)
class DenseRows:
    """Targets as rows of probabilities over the whole draft vocabulary."""

    probs: torch.Tensor  # [N, D]

    def losses(self, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
        """As `TargetRows`."""
        if row_kernels.available(logits):
            losses, predicted, gradient = row_kernels.dense_losses(logits, self.probs, rows, dtype)
            return RowLosses(losses=losses, predicted=predicted, gradient=gradient)
        losses, predicted = logits.new_empty(len(rows)), torch.empty_like(rows)
        for block in row_blocks(logits):
            probs, masses = take_rows(self.probs, rows[block]), self.masses[rows[block]].to(logits.dtype)
            losses[block], predicted[block] = _dense_losses(logits[block], probs, masses)
        return RowLosses(losses=losses, predicted=predicted, gradient=logits.to(dtype))

    @cached_property
    def masses(self) -> torch.Tensor:
        """Sums of the rows, which every step of the unroll takes again: [N], float32 at least."""
        return self.probs.sum(dim=-1, dtype=torch.promote_types(self.probs.dtype, torch.float32))

    def top_tokens(self) -> torch.Tensor:
        """Return each row's likeliest token: int64 [N]."""
        return self.probs.max(dim=-1).indices


def _dense_losses(
    logits: torch.Tensor, target_probs: torch.Tensor, masses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return losses and greedy tokens; the gradient replaces the logits, its softmax and scaling in one pass."""
    probs = target_probs.to(logits.dtype)
    overlap = row_dots(logits, probs)
    sums, top, predicted = exponentials_in_place(logits)
    logits.mul_((masses / sums)[:, None]).sub_(probs)
    return (top + sums.log()) * masses - overlap, predicted


def fused_head_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: TargetRows,
    target_rows: torch.Tensor,
    row_weights: torch.Tensor,
    *,
    chunk_rows: int | None,
    bias_weight: torch.Tensor | None = None,
) -> HeadLoss:
    """Return sum_r row_weights[r] · CE(targets[target_rows[r]], hidden_states[r] @ weight.T), float32.

    Args:
        hidden_states: [R, H], or [R, H + r] with a `bias_weight`.
        weight: [D, H].
        targets: no gradient.
        target_rows: int64 [R].
        row_weights: float32 [R], no gradient.
        chunk_rows: rows whose logits are held at once; None: those of `rows_at_once`.
        bias_weight: [D, r], which the last r columns of the hidden states meet, so that either weight may be frozen.
    """
    device = hidden_states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    chunk_rows = rows_at_once(hidden_states.device, dtype) if chunk_rows is None else chunk_rows
    loss, row_losses, predicted = _FusedHeadLoss.apply(
        hidden_states,
        weight,
        bias_weight,
        targets,
        target_rows,
        row_weights,
        chunk_rows,
        dtype,
        torch.is_grad_enabled(),
    )
    return HeadLoss(loss=loss, row_losses=row_losses, predicted=predicted)


def rows_at_once(device: torch.device, dtype: torch.dtype = torch.float32) -> int:
    """Return the rows of a chunk on this device, with products in `dtype`.

    The weight's gradient is read and written once a chunk, which fast products feel; logits fill memory.
    """
    if device.type != "cpu":
        return 4096
    return 2048 if dtype in HALF_TYPES else 512


class _FusedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - what autograd.Function passes on
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias_weight: torch.Tensor | None,
        targets: TargetRows,
        target_rows: torch.Tensor,
        row_weights: torch.Tensor,
        chunk_rows: int,
        dtype: torch.dtype,
        wants_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_rows = hidden_states.shape[0]
        row_losses = row_weights.new_empty(num_rows)
        predicted = torch.empty(num_rows, dtype=torch.int64, device=hidden_states.device)
        grad_hidden = torch.empty_like(hidden_states) if wants_gradient and ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if wants_gradient and ctx.needs_input_grad[1] else None
        grad_bias = None
        if bias_weight is not None and wants_gradient and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros_like(bias_weight)
        width, cast_weight = weight.shape[1], weight.to(dtype)
        if bias_weight is not None:
            cast_weight = torch.cat((cast_weight, bias_weight.to(dtype)), dim=1)
        with torch.autocast(hidden_states.device.type, enabled=False):
            stays_narrow = hidden_states.device.type == "cpu" and dtype in HALF_TYPES
            shape, held = (min(chunk_rows, num_rows), weight.shape[0]), dtype if stays_narrow else torch.float32
            buffer = row_weights.new_empty(shape, dtype=held)
            for start in range(0, num_rows, chunk_rows):
                span = slice(start, min(start + chunk_rows, num_rows))
                hidden = hidden_states[span].to(dtype)
                logits = buffer[: hidden.shape[0]]
                _matmul_into(logits, hidden, cast_weight)
                rows = _losses(targets, logits, target_rows[span], dtype)
                row_losses[span], predicted[span], grad_logits = rows.losses, rows.predicted, rows.gradient
                if grad_hidden is not None:
                    grad_hidden[span] = (grad_logits @ cast_weight) * row_weights[span, None]
                for gradient, columns in ((grad_weight, slice(0, width)), (grad_bias, slice(width, None))):
                    if gradient is not None:
                        weighted = (hidden[:, columns] * row_weights[span, None]).to(dtype)
                        _accumulate(gradient, grad_logits, weighted)
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(row_losses, predicted)
        return (row_losses * row_weights).sum(), row_losses, predicted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = [scaled(gradient, grads[0]) for gradient in take_gradients(ctx)]
        return *gradients, None, None, None, None, None, None


def _losses(targets: TargetRows, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
    """Return `targets.losses` of logits in float32; narrower ones are widened in blocks that stay in the cache."""
    if logits.dtype not in HALF_TYPES:
        return targets.losses(logits, rows, dtype)
    losses, predicted = logits.new_empty(len(rows), dtype=torch.float32), torch.empty_like(rows)
    for block in row_blocks(logits):
        part = targets.losses(logits[block].float(), rows[block], torch.float32)
        losses[block], predicted[block], logits[block] = part.losses, part.predicted, part.gradient
    return RowLosses(losses=losses, predicted=predicted, gradient=logits)


def _matmul_into(logits: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> None:
    if hidden.dtype == logits.dtype:
        torch.mm(hidden, weight.t(), out=logits)
    elif wide_products_work(hidden.device, hidden.dtype):
        torch.mm(hidden, weight.t(), out_dtype=logits.dtype, out=logits)
    else:
        logits.copy_(hidden @ weight.t())


def _accumulate(grad_weight: torch.Tensor, grad_logits: torch.Tensor, hidden: torch.Tensor) -> None:
    if grad_weight.dtype == grad_logits.dtype:
        grad_weight.addmm_(grad_logits.t(), hidden)
    elif grad_weight.dtype == torch.float32 and wide_products_work(hidden.device, hidden.dtype):
        torch.addmm(grad_weight, grad_logits.t(), hidden, out_dtype=torch.float32, out=grad_weight)
    else:
        grad_weight += grad_logits.t() @ hidden


@cache
def wide_products_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether products of matrices in `dtype` can leave their float32 sums unrounded, as CUDA's library can."""
    if device.type != "cuda":
        return False
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=generator).to(device, dtype) for shape in ((16, 64), (64, 32)))
    start = torch.randn(16, 32, generator=generator).to(device)

    def fast() -> tuple[torch.Tensor, ...]:
        product, total = torch.empty_like(start), start.clone()
        torch.mm(left, right, out_dtype=torch.float32, out=product)
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
        return product, total

    def plain() -> tuple[torch.Tensor, ...]:
        product = (left.double() @ right.double()).float()
        return product, start + product

    return agrees(f"the product of {dtype} matrices into float32", fast, plain, tolerance=1e-5)
