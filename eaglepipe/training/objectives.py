"""The objectives by their name in `train.objective`: one line an entry.

To add P-EAGLE: a class in `objective_peagle.py` with the members of `objective.Objective` (see there, and
`objective_eagle3.py` for one), and its line here in place of the refusal. It sets `reads = Reads(supervision=
"supervised")`, so that every supervised slot has its row, covered by the draft vocabulary or not; samples its elements
in `draw` and hands anchors and depths on in `Drawn.extras`; gives `loss_weights` of 1 for each depth and
`normalizers(counts) = counts.sum().clamp(min=1).expand(K)`. Settings: `train.peagle_depths`, `cod_ratio`,
`cod_min_ratio`, `sequence_partitions`; `draft.mask_token_id`, which the recipe already requires with this objective.
"""

from collections.abc import Callable

from eaglepipe.config import TrainConfig
from eaglepipe.errors import ConfigError
from eaglepipe.training.objective import Objective
from eaglepipe.training.objective_eagle3 import Eagle3Objective


def objective_of(config: TrainConfig) -> Objective:
    """The objective that a recipe asks for.

    Raises:
        ConfigError: it is not there yet.
    """
    return OBJECTIVES[config.objective](config)


def _not_yet(config: TrainConfig) -> Objective:
    raise ConfigError(f"train.objective {config.objective} is not there yet; this release trains eagle3")


OBJECTIVES: dict[str, Callable[[TrainConfig], Objective]] = {
    "eagle3": Eagle3Objective,
    "eagle1": _not_yet,
    "eagle2": _not_yet,
    "peagle": _not_yet,
}
