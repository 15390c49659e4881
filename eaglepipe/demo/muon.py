"""Muon: momentum whose update is made orthogonal, which learns from far fewer tokens than AdamW.

`torch.optim.Muon` takes the matrices one at a time: for the 168 small ones of the demo's target a step costs six times
the processor time of these stacked ones.
Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale that lets it
share AdamW's learning rate is from Liu et al., "Muon is Scalable for LLM Training" (2025).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon:
    """Update rule for hidden matrices, those of equal shape together; each must have a gradient at every step."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.0):
        by_shape: defaultdict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape].append(parameter)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()]
        self._momentum = momentum
        self._weight_decay = weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the parameters by their gradients."""
        for parameters, average in self._groups:
            gradient = torch.stack([_gradient(parameter) for parameter in parameters])
            average.lerp_(gradient, 1.0 - self._momentum)
            updates = orthogonalize(gradient.lerp_(average, self._momentum))
            scale = 0.2 * max(updates.shape[1:]) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1.0 - learning_rate * self._weight_decay).add_(update, alpha=-learning_rate * scale)


def orthogonalize(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Bring the singular values of `matrices` [N, R, C] near one (about 0.7 to 1.2), keeping the singular vectors."""
    linear, cubic, quintic = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.mT if is_tall else x


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
