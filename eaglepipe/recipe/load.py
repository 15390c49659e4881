"""Recipes from YAML files plus `section.key=value` overrides.

`train.objective` chooses the family and with it the class of the recipe. Unknown keys are errors that name the nearest
key, and all errors are reported at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from eaglepipe.errors import ConfigError
from eaglepipe.families import DEFAULT_FAMILY, FAMILIES
from eaglepipe.recipe.explain import explain
from eaglepipe.recipe.foreign import drop_foreign_defaults
from eaglepipe.recipe.scalars import PlainDumper
from eaglepipe.recipe.tree import Recipe
from eaglepipe.recipe.yaml_file import apply_override, read_yaml


def parse_recipe(raw: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a mapping of sections describes, as its family's class.

    Settings of other families are dropped where they have their defaults, as recipes written in full carry them.

    Raises:
        ValidationError: with all mistakes.
    """
    recipe_class = _recipe_class(raw)
    return recipe_class.model_validate(drop_foreign_defaults(raw, recipe_class))


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides, whose values are YAML.

    Raises:
        ConfigError: with one line for each mistake in the file and the overrides together.
    """
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    try:
        return parse_recipe(raw)
    except ValidationError as error:
        lines = [f"  {line}" for line in explain(error, _recipe_class(raw), objective=_objective(raw))]
        raise ConfigError(f"{path}: {len(lines)} mistake(s)\n" + "\n".join(lines)) from None


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, defaults included."""
    text: str = yaml.dump(recipe.model_dump(mode="json"), Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
    return text


def _objective(raw: Mapping[str, Any]) -> str:
    train = raw.get("train")
    return str(train.get("objective", DEFAULT_FAMILY.name)) if isinstance(train, Mapping) else DEFAULT_FAMILY.name


def _recipe_class(raw: Mapping[str, Any]) -> type[Recipe]:
    """Return the class of the family; an unknown objective is left for the default family's class to report."""
    family = FAMILIES.get(_objective(raw), DEFAULT_FAMILY)
    recipe_class: type[Recipe] = family.load(family.recipe)
    return recipe_class
