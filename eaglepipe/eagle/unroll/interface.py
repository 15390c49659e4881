"""The arguments and results of an unroll, whichever implementation runs.

Symbols: B rows, T slots, S rows of targets, D draft vocabulary, K steps.
"""

from dataclasses import dataclass, field, replace

import torch

from eaglepipe.eagle.kernels.fused_head import DenseRows
from eaglepipe.eagle.losses import CROSS_ENTROPY, StepLoss
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets


@dataclass(frozen=True, kw_only=True)
class TrainerInputs:
    """A batch with the aux states and distributions that the target computed for it."""

    batch: PackedBatch
    aux_hidden_states: torch.Tensor  # [B, T, A·Ht] or [B, T, A, Ht]
    target_probs: torch.Tensor | SparseTargets  # [B, T, D]; or S rows, of the slots set in a mask, row by row
    draft_mass: torch.Tensor | None = None  # float32, one for each row of target_probs: [B, T] or [S]

    @property
    def aux(self) -> torch.Tensor:
        """The aux states of all layers side by side, [B, T, A·Ht]."""
        return self.aux_hidden_states.flatten(2)

    @property
    def has_compact_rows(self) -> bool:
        """Whether target rows exist for the slots of a mask alone."""
        return isinstance(self.target_probs, SparseTargets) or self.target_probs.dim() == 2

    def prepared(self) -> "TrainerInputs":
        """Detach the targets, and fetch masks and the layout of sparse targets unless they travel with the batch."""
        batch, targets = self.batch, self.target_probs
        return replace(
            self,
            batch=replace(batch, host_copy=batch.on_host()),
            target_probs=targets.with_layout() if isinstance(targets, SparseTargets) else targets.detach(),
            draft_mass=None if self.draft_mass is None else self.draft_mass.detach().float(),
        )

    def target_rows(self) -> DenseRows | SparseRows:
        """Return the target's distributions as the fused head reads them."""
        if isinstance(self.target_probs, SparseTargets):
            return SparseRows.of(self.target_probs)
        return DenseRows(probs=self.target_probs.flatten(0, -2))


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The loss of the K steps of an unroll."""

    step_weights: torch.Tensor  # float32 [K], scale the steps' loss sums
    loss: StepLoss = CROSS_ENTROPY
    mean_alphas: torch.Tensor | None = None  # float32 [K], for `lambda`; None: the batch's own


def none_yet() -> torch.Tensor:
    """Return the value of a metric that was not computed."""
    return torch.zeros(0)


@dataclass(frozen=True, kw_only=True)
class UnrollResult:
    """Sums over a batch for each step; only `loss` carries a gradient."""

    loss: torch.Tensor  # float32, sum over steps of step_weights[k] · loss_sums[k]
    loss_sums: torch.Tensor  # float32 [K]
    correct: torch.Tensor  # int64 [K]
    hits: torch.Tensor  # int64 [K]
    alpha_sums: torch.Tensor = field(default_factory=none_yet)  # float32 [K], summed alpha; only with an LK loss
    sampled_hits: torch.Tensor = field(default_factory=none_yet)
    """float32 [K], slots times the chance that their first k+1 drawn drafts are all accepted; only with an LK loss."""
