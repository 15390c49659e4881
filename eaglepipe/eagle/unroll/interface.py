"""The arguments and results of an unroll, whichever implementation runs.

Symbols: B rows, T slots, S rows of targets, D draft vocabulary, K steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from eaglepipe.eagle.kernels.fused_head import DenseRows
from eaglepipe.eagle.losses import CROSS_ENTROPY, StepLoss
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets


@dataclass(frozen=True, kw_only=True)
class EncodedTargets:
    """S rows of a distribution over D draft tokens, decoded a part at a time: all of them would fill the memory."""

    decode: Callable[[slice], torch.Tensor]  # rows -> their probabilities [rows, D]
    num_rows: int
    draft_size: int


@dataclass(frozen=True, kw_only=True)
class TrainerInputs:
    """A batch with the aux states and distributions that the target computed for it.

    With a `share` in the batch there are rows of its own slots and no others: aux states [slots owned, A·Ht], and
    targets of the slots that it reads.
    """

    batch: PackedBatch
    aux_hidden_states: torch.Tensor  # [B, T, A·Ht] or [B, T, A, Ht]
    target_probs: torch.Tensor | SparseTargets | EncodedTargets
    """[B, T, D]; or S rows, of the slots set in a mask, row by row."""
    draft_mass: torch.Tensor | None = None  # float32, one for each row of target_probs: [B, T] or [S]

    @property
    def aux(self) -> torch.Tensor:
        """The aux states of all layers side by side, [B, T, A·Ht]."""
        return self.aux_hidden_states.flatten(2)

    @property
    def aux_rows(self) -> torch.Tensor:
        """The same as rows [N, A·Ht], of the slots of this process."""
        return self.aux_hidden_states if self.batch.share is not None else self.aux.flatten(0, 1)

    @property
    def has_compact_rows(self) -> bool:
        """Whether target rows exist for the slots of a mask alone."""
        return not isinstance(self.target_probs, torch.Tensor) or self.target_probs.dim() == 2

    @property
    def num_target_rows(self) -> int:
        """S, of compact rows."""
        if isinstance(self.target_probs, EncodedTargets):
            return self.target_probs.num_rows
        return len(self.target_probs.tail if isinstance(self.target_probs, SparseTargets) else self.target_probs)

    def prepared(self) -> "TrainerInputs":
        """Detach the targets, and fetch masks and the layout of sparse targets unless they travel with the batch."""
        batch, targets = self.batch, self.target_probs
        return replace(
            self,
            batch=replace(batch, host_copy=batch.on_host()),
            target_probs=_prepared(targets),
            draft_mass=None if self.draft_mass is None else self.draft_mass.detach().float(),
        )

    @property
    def whole_targets(self) -> torch.Tensor | SparseTargets:
        """The targets of inputs that are not encoded."""
        assert not isinstance(self.target_probs, EncodedTargets), "decode them first"
        return self.target_probs

    def decoded(self) -> "TrainerInputs":
        """Decode all targets."""
        if not isinstance(self.target_probs, EncodedTargets):
            return self
        return replace(self, target_probs=self.target_probs.decode(slice(0, self.target_probs.num_rows)))

    def target_rows(self, rows: slice | None = None) -> DenseRows | SparseRows:
        """Return the target's distributions as the fused head reads them.

        Args:
            rows: those that are read, by which they are then numbered; default: all.
        """
        targets = self.decoded().target_probs if rows is None else self.target_probs
        if isinstance(targets, SparseTargets):
            return SparseRows.of(targets if rows is None else targets.cut(rows))
        if isinstance(targets, EncodedTargets):
            return DenseRows(probs=targets.decode(slice(None) if rows is None else rows))
        probs = targets.flatten(0, -2)
        return DenseRows(probs=probs if rows is None else probs[rows])


def _prepared(targets: torch.Tensor | SparseTargets | EncodedTargets) -> torch.Tensor | SparseTargets | EncodedTargets:
    if isinstance(targets, SparseTargets):
        return targets.with_layout()
    return targets.detach() if isinstance(targets, torch.Tensor) else targets


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
