"""The losses of a block draft on dense logits, plainly; float32 in every compute dtype.

A position's loss is a weighted sum of cross-entropy, KL and total variation; positions weigh less the later they are
(DFlash, arXiv 2602.06036) or by the chance that a round reaches them (D-PACE). DSpark adds the error of a forecast of
acceptance (arXiv 2607.05147). Symbols: N blocks, B positions of a block, D draft vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from eaglepipe.eagle.losses import acceptance, soft_cross_entropy

PositionWeights = Literal["exponential", "dpace"]
NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class BlockLoss:
    """Factors of a position's terms, and how positions weigh.

    `ce`: -log q[label]; `kl`: KL(p, q); `tv`: 1 - sum_v min(p[v], q[v]), half of |q - p|_1 if D = V; `confidence`:
    binary cross-entropy of the confidence head against 1 - `tv`, with exponential weights in any case.
    """

    ce: float = 1.0
    kl: float = 0.0
    tv: float = 0.0
    confidence: float = 0.0
    weights: PositionWeights = "exponential"
    gamma: float = 4.0  # positions over which an exponential weight falls to 1/e
    dpace_alpha: float = 0.5  # smooths q[label] towards 1
    sample_from_anchor: bool = False  # whether position 0, the anchor's own, predicts a token too

    @property
    def needs_probs(self) -> bool:
        """Whether the target's distribution is read, and not the labels alone."""
        return bool(self.kl or self.tv or self.confidence)


DSPARK_LOSS = BlockLoss(ce=0.1, tv=1.8, confidence=1.0, sample_from_anchor=True)
"""0.1 · cross-entropy + 0.9 · |q - p|_1 + the confidence head's error."""


@dataclass(frozen=True, kw_only=True)
class BlockTargets:
    """What each position of N blocks has to predict."""

    mask: torch.Tensor  # bool [N, B], supervised from the anchor on; position 0 of an anchor without a loss is ignored
    labels: torch.Tensor  # int64 [N, B], draft ids; NO_LABEL outside the draft vocabulary
    probs: torch.Tensor | None = None  # [N, B, D], the target's distribution, renormalised
    draft_mass: torch.Tensor | None = None  # [N, B], share of its full distribution that they are of; default: all


@dataclass(frozen=True, kw_only=True)
class BlockLossSums:
    """Sums over all positions in the loss; only `loss` carries a gradient."""

    loss: torch.Tensor  # float32, no dimensions
    weights: torch.Tensor  # float32, no dimensions
    num_positions: torch.Tensor  # int64, no dimensions
    alphas: torch.Tensor | None  # float32 [N, B], acceptance of each position; None without the target's distribution


def block_loss(
    settings: BlockLoss, logits: torch.Tensor, targets: BlockTargets, confidence_logits: torch.Tensor | None = None
) -> BlockLossSums:
    """Return the loss of N blocks, summed with the positions' weights.

    Divided by the sum of weights it is the mean of the papers; by the number of positions, that of `speculators`.

    Args:
        settings: which terms there are.
        logits: [N, B, D].
        targets: no gradient; the distributions only if a term reads them.
        confidence_logits: [N, B], if `settings.confidence` is not 0.
    """
    mask = targets.mask if settings.sample_from_anchor else _without_anchor(targets.mask)
    cross_entropy = label_cross_entropy(logits, targets.labels)
    fixed = exponential_weights(settings, mask)
    weights = fixed
    if settings.weights == "dpace":
        weights = dpace_weights(cross_entropy, targets.labels != NO_LABEL, mask, settings.dpace_alpha)
    losses, alphas = settings.ce * cross_entropy, None
    if settings.needs_probs:
        assert targets.probs is not None
        alphas = _alphas(logits, targets)
        losses = losses + settings.kl * divergence(logits, targets.probs) + settings.tv * (1 - alphas)
    loss = (weights * losses).sum()
    if settings.confidence:
        assert confidence_logits is not None and alphas is not None
        loss = loss + settings.confidence * (fixed * confidence_loss(confidence_logits, alphas)).sum()
    return BlockLossSums(
        loss=loss, weights=weights.sum(), num_positions=mask.sum(), alphas=None if alphas is None else alphas.detach()
    )


def label_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log softmax(logits)[label]: [..., D] and [...] -> float32 [...]; 0 without a label."""
    log_q = logits.float().log_softmax(dim=-1)
    losses = -log_q.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return losses.masked_fill(labels == NO_LABEL, 0.0)


def divergence(logits: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Return KL(p, softmax(logits)): [..., D] twice -> float32 [...]."""
    return soft_cross_entropy(logits, probs) - torch.special.entr(probs.float()).sum(dim=-1)


def confidence_loss(confidence_logits: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of forecasts against acceptances, which get no gradient: float32 [...]."""
    goals = alphas.detach().clamp(0.0, 1.0)
    return binary_cross_entropy_with_logits(confidence_logits.float(), goals, reduction="none")


def exponential_weights(settings: BlockLoss, mask: torch.Tensor) -> torch.Tensor:
    """Return exp(-i / gamma) of the i-th position that predicts, 0 outside the mask: bool [N, B] -> float32."""
    positions = torch.arange(mask.shape[1], device=mask.device) - (0 if settings.sample_from_anchor else 1)
    return torch.exp(-positions.clamp(min=0) / settings.gamma) * mask


def dpace_weights(
    cross_entropy: torch.Tensor, has_label: torch.Tensor, mask: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Return w[k] = sum over j >= k of prod over i <= j of (1 - alpha) q[i] + alpha, without gradient: float32 [N, B].

    The expected number of tokens that a round gains at k or later; q[i] = exp(-cross_entropy[i]) stands for the chance
    that guess i is accepted, 0 without a label. Positions outside the mask are neither summed nor multiplied.
    """
    accepted = torch.exp(-cross_entropy.detach()) * has_label
    smooth = ((1 - alpha) * accepted + alpha).masked_fill(~mask, 1.0)
    reached = smooth.cumprod(dim=-1) * mask
    return reached.flip(-1).cumsum(dim=-1).flip(-1) * mask


def _alphas(logits: torch.Tensor, targets: BlockTargets) -> torch.Tensor:
    assert targets.probs is not None
    mass = torch.ones_like(targets.probs[..., 0]) if targets.draft_mass is None else targets.draft_mass
    return acceptance(logits, targets.probs, mass)


def _without_anchor(mask: torch.Tensor) -> torch.Tensor:
    return torch.cat((torch.zeros_like(mask[:, :1]), mask[:, 1:]), dim=1)
