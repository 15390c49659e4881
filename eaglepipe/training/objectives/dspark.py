"""The objective of DSpark: DFlash's, with the error of the confidence head as a further term."""

from dataclasses import dataclass, replace

from eaglepipe.eagle.dflash.dspark_trainer import DSparkTrainerModule
from eaglepipe.eagle.dflash.losses import BlockLoss
from eaglepipe.recipe.block_settings import DsparkTrainConfig
from eaglepipe.training.objectives.dflash import DflashObjective


@dataclass(frozen=True)
class DsparkObjective(DflashObjective):
    """`Objective` over the guesses of blocks whose anchor guesses too."""

    config: DsparkTrainConfig
    module_class = DSparkTrainerModule

    @property
    def _reads_probs(self) -> bool:
        return super()._reads_probs or self.config.confidence_weight > 0.0

    def block_loss(self) -> BlockLoss:
        return replace(super().block_loss(), confidence=self.config.confidence_weight)
