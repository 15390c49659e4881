"""RMSNorm, SwiGLU and rotary embedding with backwards of their own: fewer passes over memory, fewer tensors kept."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from eaglepipe.eagle.kernels.row_ops import row_blocks
from eaglepipe.eagle.layers.blocks import Eagle3LlamaRMSNorm


def rms_norm(states: torch.Tensor, norm: Eagle3LlamaRMSNorm) -> torch.Tensor:
    """Return `norm(states)` of [n, H], computed in float32 at least, in the wider dtype of states and weight."""
    output: torch.Tensor = _RMSNorm.apply(states, norm.weight, norm.eps)
    return output


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) · up, keeping only the two for the backward."""
    output: torch.Tensor = _SwiGLU.apply(gate, up)
    return output


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary tables [n, 1, R], whose halves are equal, to [n, heads, d], keeping only the tables."""
    output: torch.Tensor = _Rotate.apply(states, cos.to(states.dtype), sin.to(states.dtype))
    return output


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        scale = (torch.linalg.vector_norm(wide, dim=-1).square_() / wide.shape[-1] + eps).rsqrt_()[..., None]
        ctx.save_for_backward(states, weight, scale)
        return (wide * scale).mul_(weight).to(torch.promote_types(states.dtype, weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, scale = ctx.saved_tensors
        grad_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=scale.dtype)
        for rows in row_blocks(states):
            grad_output, wide, row_scale = grads[0][rows].to(scale.dtype), states[rows].to(scale.dtype), scale[rows]
            products = grad_output * wide
            grad_weight.addmv_(products.t(), row_scale[:, 0])
            if grad_states is not None:
                overlap = (products @ weight.to(scale.dtype))[:, None] * row_scale.square() / wide.shape[-1]
                along_states = torch.mul(wide, overlap, out=products)
                grad_states[rows] = (grad_output * weight).sub_(along_states).mul_(row_scale)
        return grad_states, grad_weight if ctx.needs_input_grad[1] else None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grads[0])
        return torch.ops.aten.silu_backward(grads[0] * up, gate), grad_up


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(states, cos, sin, direction=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, sin, direction=-1), None, None


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    """Rotate the first R of d by the tables' angles, or back."""
    size = cos.shape[-1]
    half = size // 2
    output = torch.empty_like(states, memory_format=torch.contiguous_format)
    torch.mul(states[..., :size], cos, out=output[..., :size])
    output[..., :half].addcmul_(states[..., half:size], sin[..., :half], value=-direction)
    output[..., half:size].addcmul_(states[..., :half], sin[..., half:], value=direction)
    output[..., size:] = states[..., size:]
    return output
