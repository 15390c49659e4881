"""Settings that belong to other families than the recipe's."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from eaglepipe.families import FAMILIES

_FAMILY_SECTIONS = ("draft", "train")


def families_with(location: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """Return the setting at (section, key) of every family that has it, by the family's name."""
    if len(location) != 2 or location[0] not in _FAMILY_SECTIONS:
        return {}
    section, key = str(location[0]), str(location[1])
    fields = {name: _fields(family.load(family.recipe), section) for name, family in FAMILIES.items()}
    return {name: fields_of_family[key] for name, fields_of_family in fields.items() if key in fields_of_family}


def drop_foreign_defaults(raw: Mapping[str, Any], recipe_class: type[BaseModel]) -> dict[str, Any]:
    """Return a copy of a recipe without settings that its family lacks, as far as they have their default."""
    recipe = dict(raw)
    for section in _FAMILY_SECTIONS:
        if isinstance(recipe.get(section), Mapping):
            own = _fields(recipe_class, section)
            recipe[section] = {
                key: value
                for key, value in recipe[section].items()
                if key in own or not any(_is_default(field, value) for field in families_with((section, key)).values())
            }
    return recipe


def _is_default(field: FieldInfo, value: Any) -> bool:
    """Return whether a value, which may come from JSON and so have lists for tuples, is a field's default."""
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return bool(default == (list(value) if isinstance(value, tuple) else value))


def _fields(recipe_class: type[BaseModel], section: str) -> dict[str, FieldInfo]:
    section_class: Any = recipe_class.model_fields[section].annotation
    return dict(section_class.model_fields)
