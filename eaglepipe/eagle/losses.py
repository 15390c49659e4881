"""The losses of a TTT step, plainly; float32 in every compute dtype.

Soft cross-entropy, or the LK losses (arXiv 2602.23881) on the acceptance alpha = sum_v min(p_full[v], q[v]), where
p_full is the target's distribution before it is renormalised inside the draft vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch

LossKind = Literal["ce", "alpha", "lambda"]
LOSS_KINDS = ("ce", "alpha", "lambda")


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """A slot's loss: `ce`; `alpha`: -log alpha; `lambda`: w·CE + (1 - w)(1 - alpha).

    w = scale·exp(-decay·m), at most 1 and without gradient; m is the mean alpha of one TTT step, so that a whole step
    moves from cross-entropy to acceptance as the draft improves.
    """

    kind: LossKind = "ce"
    scale: float = 1.0
    decay: float = 3.0

    @property
    def needs_mass(self) -> bool:
        """Whether the loss needs the share of the target's distribution inside the draft vocabulary."""
        return self.kind != "ce"

    def cross_entropy_weight(self, mean_alphas: torch.Tensor) -> torch.Tensor:
        """Return w of steps with these mean alphas, in their shape; 0 for `alpha`."""
        if self.kind == "alpha":
            return torch.zeros_like(mean_alphas)
        return (self.scale * torch.exp(-self.decay * mean_alphas.detach())).clamp(max=1.0)

    def of_rows(self, cross_entropy: torch.Tensor, alpha: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the LK loss of each row from its cross-entropy, alpha and w; finite if alpha is 0."""
        if self.kind == "alpha":
            return -floored(alpha).log()
        return weight * cross_entropy + (1 - weight) * (1 - alpha)


CROSS_ENTROPY = StepLoss()


def floored(alpha: torch.Tensor) -> torch.Tensor:
    """Return alpha, at least the dtype's smallest normal number, below which there is no gradient."""
    return alpha.clamp(min=torch.finfo(alpha.dtype).tiny)


def soft_cross_entropy(logits: torch.Tensor, target_probs: torch.Tensor) -> torch.Tensor:
    """Return -sum_v p[v] · log softmax(logits)[v] of each row: logits and probabilities [..., D] -> [...], float32."""
    return -(target_probs.float() * logits.float().log_softmax(dim=-1)).sum(dim=-1)


def acceptance(logits: torch.Tensor, target_probs: torch.Tensor, draft_mass: torch.Tensor) -> torch.Tensor:
    """Return alpha = sum_v min(draft_mass · p[v], softmax(logits)[v]): [..., D] twice and [...] -> [...].

    The chance that a token drawn from the draft is accepted; float32 at least. Equal shares have a gradient of 0.
    """
    q = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    return overlap(target_probs.to(q.dtype) * draft_mass.to(q.dtype)[..., None], q).sum(dim=-1)


def overlap(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return min(p, q), elementwise; the gradient goes to q where q < p, and nowhere else."""
    return torch.where(q < p, q, p)
