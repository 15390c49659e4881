"""Training of DSpark drafts: as DFlash's, with the Markov head in the logits and the confidence head's own error.

Symbols: R guesses in the loss, H hidden, r rank of the Markov head, D draft vocabulary.
"""

import torch

from eaglepipe.eagle.dflash.dspark import DSparkDraftModel
from eaglepipe.eagle.dflash.losses import confidence_loss
from eaglepipe.eagle.dflash.trainer import DFlashTrainerModule


class DSparkTrainerModule(DFlashTrainerModule):
    """`DFlashTrainerModule` of a `DSparkDraftModel`; guesses are conditioned on the true tokens before them."""

    draft_model: DSparkDraftModel

    def head_operands(self, states: torch.Tensor, previous: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return [R, H + r] and [D, H + r]: both heads are one product."""
        draft = self.draft_model
        features = draft.markov_head(states, previous)
        weight = torch.cat((draft.lm_head.weight, draft.markov_head.markov_w2.weight), dim=1)
        return torch.cat((states, features.to(states.dtype)), dim=-1), weight

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
