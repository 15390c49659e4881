"""Losses of the guesses of one forward through the fused head, and the weights of their positions.

Symbols: R guesses in the loss, N blocks, K depths, D draft vocabulary, H hidden.
"""

from dataclasses import dataclass, replace

import torch

from eaglepipe.eagle.dflash.inputs import TeacherRows
from eaglepipe.eagle.dflash.losses import BlockLoss, dpace_weights
from eaglepipe.eagle.dflash.rows import GuessRows, LabelRows, WeightedRows
from eaglepipe.eagle.kernels.fused_head import HeadLoss, TargetRows, fused_head_loss
from eaglepipe.eagle.kernels.fused_lk import LKRows
from eaglepipe.eagle.losses import StepLoss

_TOTAL_VARIATION = StepLoss(kind="lambda")  # with a weight of 0 for cross-entropy


@dataclass(frozen=True, kw_only=True)
class HeadOperands:
    """What the logits of R guesses are a product of."""

    hidden: torch.Tensor  # [R, H], or [R, H + r] with a bias
    weight: torch.Tensor  # [D, H]
    bias_weight: torch.Tensor | None = None  # [D, r], of a bias of rank r

    def loss(self, rows: TargetRows, guesses: "Guesses", weights: torch.Tensor, chunk_rows: int | None) -> HeadLoss:
        """Return `fused_head_loss` against a row of `rows` for each guess."""
        return fused_head_loss(
            self.hidden,
            self.weight,
            rows,
            guesses.order,
            weights,
            chunk_rows=chunk_rows,
            bias_weight=self.bias_weight,
        )


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """R guesses on the device, int64 [R] each."""

    slots: torch.Tensor  # flat anchors
    depths: torch.Tensor
    owners: torch.Tensor  # blocks
    references: torch.Tensor  # flat slots that supervise them
    previous: torch.Tensor  # the true target id before each
    labels: torch.Tensor  # draft ids, -1 outside the draft vocabulary
    top1: torch.Tensor  # draft ids of the target's likeliest tokens, -1 outside
    num_blocks: int
    num_depths: int

    def by_block(self, values: torch.Tensor) -> torch.Tensor:
        """Spread [R] over the blocks, 0 where nothing counts: [N, K]."""
        table = values.new_zeros(self.num_blocks, self.num_depths)
        table[self.owners, self.depths] = values
        return table

    @property
    def order(self) -> torch.Tensor:
        """The number of each guess, int64 [R]."""
        return torch.arange(len(self.slots), device=self.slots.device)


def exponential(depths: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return exp(-d / gamma) of depths int64 [R], float32."""
    return torch.exp(-depths / gamma)


@torch.no_grad()
def position_weights(
    settings: BlockLoss, operands: HeadOperands, guesses: Guesses, *, chunk_rows: int | None
) -> torch.Tensor:
    """Return the weight of each guess, float32 [R]; D-PACE runs the head once more, for the labels' probabilities."""
    if settings.weights == "exponential":
        return exponential(guesses.depths, settings.gamma)
    ones = torch.ones(len(guesses.slots), device=operands.hidden.device)
    rows = LabelRows(labels=guesses.labels)
    head = operands.loss(rows, guesses, ones, chunk_rows)
    mask, has_label = guesses.by_block(ones).bool(), guesses.by_block(guesses.labels >= 0)
    weights = dpace_weights(guesses.by_block(head.row_losses), has_label, mask, settings.dpace_alpha)
    return weights[guesses.owners, guesses.depths]


def guess_losses(
    settings: BlockLoss,
    operands: HeadOperands,
    guesses: Guesses,
    *,
    teacher: TeacherRows | None,
    weights: torch.Tensor,
    chunk_rows: int | None,
) -> tuple[HeadLoss, torch.Tensor | None]:
    """Return the weighted terms of R guesses, and each one's acceptance, float32 [R], if a term needs it.

    Args:
        teacher: the target's distributions, if a term reads them.
        weights: float32 [R].
    """
    terms: list[tuple[float, TargetRows]] = []
    constant, alphas = torch.zeros_like(weights), None
    if settings.ce or not settings.needs_probs:
        terms.append((settings.ce, LabelRows(labels=guesses.labels)))
    if settings.needs_probs:
        assert teacher is not None
        target_rows = teacher.row_of_slot[guesses.references]
        if settings.kl:
            terms.append((settings.kl, GuessRows(targets=teacher.rows, target_rows=target_rows)))
            constant = settings.kl * teacher.entropies[target_rows]
        if settings.tv or settings.confidence:
            lk = LKRows(
                targets=teacher.rows,
                target_rows=target_rows,
                draft_mass=teacher.draft_mass,
                loss=_TOTAL_VARIATION,
                weights=torch.zeros_like(weights),
                alphas=torch.empty_like(weights),
            )
            alphas = lk.alphas
            terms.append((settings.tv, lk))
    rows = terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else WeightedRows(terms=terms)
    head = operands.loss(rows, guesses, weights, chunk_rows)
    return replace(head, loss=head.loss - (weights * constant).sum(), row_losses=head.row_losses - constant), alphas
