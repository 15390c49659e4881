"""The objectives by their name in `train.objective`: one line an entry."""

from collections.abc import Callable

from eaglepipe.recipe.config import TrainConfig
from eaglepipe.training.objectives.eagle1 import Eagle1Objective
from eaglepipe.training.objectives.eagle3 import Eagle3Objective
from eaglepipe.training.objectives.interface import Objective
from eaglepipe.training.objectives.peagle import PeagleObjective


def objective_of(config: TrainConfig) -> Objective:
    """The objective that a recipe asks for."""
    return OBJECTIVES[config.objective](config)


OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {
    "eagle3": Eagle3Objective,
    "eagle1": Eagle1Objective,
    "eagle2": Eagle1Objective,
    "peagle": PeagleObjective,
}
