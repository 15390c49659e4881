"""The `train` and `draft` sections of any family, without the rest of a recipe."""

from typing import Any

from eaglepipe.families import FAMILIES
from eaglepipe.recipe.training import DraftConfig, TrainConfig


def train_config(objective: str = "eagle3", **settings: Any) -> TrainConfig:
    return _section("train", objective)(objective=objective, **settings)  # type: ignore[no-any-return]


def draft_config(objective: str = "eagle3", **settings: Any) -> DraftConfig:
    return _section("draft", objective)(**settings)  # type: ignore[no-any-return]


def _section(name: str, objective: str) -> Any:
    family = FAMILIES[objective]
    return family.load(family.recipe).model_fields[name].annotation
