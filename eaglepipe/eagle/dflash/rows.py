"""The terms of a block's loss for the fused head: losses and gradients of rows of logits.

Row r of a term is guess r. Symbols: R guesses of a forward, r of a chunk, D draft vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eaglepipe.eagle.kernels.fused_head import TargetRows
from eaglepipe.eagle.kernels.row_ops import RowLosses, RowSoftmax


@dataclass(frozen=True, kw_only=True)
class LabelRows:
    """Cross-entropy of one label a row; a row without a label has neither loss nor gradient."""

    labels: torch.Tensor  # int64 [R], draft ids, -1 for none

    def losses(self, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
        """As `TargetRows`."""
        labels = self.labels.index_select(0, rows)
        has_label = (labels >= 0).to(logits.dtype)
        places = labels.clamp(min=0)[:, None]
        own = logits.gather(-1, places)[:, 0]
        softmax = RowSoftmax.of(logits)
        losses = (softmax.log_partition - own) * has_label
        gradient = softmax.scaled(has_label, dtype)
        gradient.scatter_add_(-1, places, -has_label[:, None].to(dtype))
        return RowLosses(losses=losses, predicted=softmax.token, gradient=gradient)


@dataclass(frozen=True, kw_only=True)
class GuessRows:
    """Targets by guess of a `TargetRows` that has them by supervised slot."""

    targets: TargetRows
    target_rows: torch.Tensor  # int64 [R]

    def losses(self, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
        """As `TargetRows`."""
        return self.targets.losses(logits, self.target_rows.index_select(0, rows), dtype)


@dataclass(frozen=True, kw_only=True)
class WeightedRows:
    """A sum of terms with factors; logits are copied for every term but the last."""

    terms: Sequence[tuple[float, TargetRows]]

    def losses(self, logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> RowLosses:
        """As `TargetRows`."""
        total: RowLosses | None = None
        for number, (factor, term) in enumerate(self.terms, start=1):
            part = term.losses(logits if number == len(self.terms) else logits.clone(), rows, dtype)
            losses, gradient = part.losses * factor, part.gradient.mul_(factor)
            if total is not None:
                losses, gradient = losses + total.losses, gradient.add_(total.gradient)
            total = RowLosses(losses=losses, predicted=part.predicted, gradient=gradient)
        assert total is not None
        return total
