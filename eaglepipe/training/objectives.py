"""The objectives by their name in `train.objective`: one line an entry."""

from collections.abc import Callable

from eaglepipe.config import TrainConfig
from eaglepipe.errors import ConfigError
from eaglepipe.training.objective import Objective
from eaglepipe.training.objective_eagle3 import Eagle3Objective
from eaglepipe.training.objective_peagle import PeagleObjective


def objective_of(config: TrainConfig) -> Objective:
    """The objective that a recipe asks for.

    Raises:
        ConfigError: it is not there yet.
    """
    return OBJECTIVES[config.objective](config)


def _not_yet(config: TrainConfig) -> Objective:
    raise ConfigError(f"train.objective {config.objective} is not there yet; this release trains eagle3 and peagle")


OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {
    "eagle3": Eagle3Objective,
    "eagle1": _not_yet,
    "eagle2": _not_yet,
    "peagle": PeagleObjective,
}
