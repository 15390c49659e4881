"""`DraftSteps` of DSpark: one block a round, whose guesses are chosen one after the other by the Markov head."""

import torch

from eaglepipe.decoding.dflash_steps import DflashSteps


class DsparkSteps(DflashSteps):
    """Steps of a `DSparkDraftModel`; the confidence head stops no round here."""

    name = "DSpark"
    is_chained = True

    def follow(self, logits: torch.Tensor, previous: torch.Tensor, depth: int) -> torch.Tensor:
        biased: torch.Tensor = logits + self.draft.markov_bias(self._states[:, depth], previous)
        return biased
