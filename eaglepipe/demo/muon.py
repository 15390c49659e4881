"""Muon in float32: momentum whose update is made orthogonal, which learns from far fewer tokens than AdamW.

Here because PyTorch's own runs it in bfloat16, which is slow on processors without bfloat16 units.
Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale that lets it
share AdamW's learning rate is from Liu et al., "Muon is Scalable for LLM Training" (2025).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon:
    """The update rule for hidden matrices; `parameters` are 2-D, and each has a gradient at every step."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.0):
        self._averages = [(parameter, torch.zeros_like(parameter)) for parameter in parameters]
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One update from the gradients that the parameters hold; the gradients are used up."""
        for parameter, average in self._averages:
            assert parameter.grad is not None
            average.lerp_(parameter.grad, 1.0 - self._momentum)
            update = orthogonalize(parameter.grad.lerp_(average, self._momentum))
            scale = 0.2 * max(update.shape) ** 0.5
            parameter.mul_(1.0 - learning_rate * self._weight_decay).add_(update, alpha=-learning_rate * scale)


def orthogonalize(matrix: Tensor, num_iterations: int = 5) -> Tensor:
    """Bring the singular values of `matrix` [R, C] near one (about 0.7 to 1.2), keeping the singular vectors."""
    linear, cubic, quintic = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.T if is_tall else x
