"""Training of DSpark drafts: as DFlash's, with the Markov head in the logits and the confidence head's own error.

Symbols: R guesses in the loss, H hidden, r rank of the Markov head, D draft vocabulary.
"""

import torch

from eaglepipe.eagle.dflash.dspark import DSparkDraftModel
from eaglepipe.eagle.dflash.guesses import HeadOperands
from eaglepipe.eagle.dflash.losses import confidence_loss
from eaglepipe.eagle.dflash.trainer import DFlashTrainerModule


class DSparkTrainerModule(DFlashTrainerModule):
    """`DFlashTrainerModule` of a `DSparkDraftModel`; guesses are conditioned on the true tokens before them."""

    draft_model: DSparkDraftModel

    def head_operands(self, states: torch.Tensor, previous: torch.Tensor) -> HeadOperands:
        """Both heads are one product, of which the Markov head alone is trained."""
        draft = self.draft_model
        features = draft.markov_head(states, previous).to(states.dtype)
        return HeadOperands(
            hidden=torch.cat((states, features), dim=-1),
            weight=draft.lm_head.weight,
            bias_weight=draft.markov_head.markov_w2.weight,
        )

    def extra_loss(
        self, states: torch.Tensor, previous: torch.Tensor, alphas: torch.Tensor | None, weights: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the confidence head's error against the acceptances, weighted; None if it is not trained."""
        if not self.loss.confidence or alphas is None:
            return None
        forecasts = self.draft_model.forecast(states, previous)
        if forecasts is None:
            return None
        return self.loss.confidence * (weights * confidence_loss(forecasts, alphas)).sum()
