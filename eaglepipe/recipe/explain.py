"""Pydantic's errors about a recipe, in words that name the key and the nearest one that exists."""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from eaglepipe.families import FAMILIES
from eaglepipe.recipe.endpoints import SECRET_FIELDS
from eaglepipe.recipe.foreign import families_with
from eaglepipe.stores.urls import redacted


def explain(error: ValidationError, tree: type[BaseModel], *, objective: str) -> Iterator[str]:
    """Yield one line per mistake, led by the path of its key, in a recipe of class `tree` and this `objective`."""
    for item in error.errors(include_url=False):
        if item["type"] == "too_short" and item["input"]:
            continue  # pydantic's echo of mistakes in the items, which are reported too
        location = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden" and (families := families_with(item["loc"])):
            yield (
                f"{location} is {item['input']!r}, which train.objective {objective} ignores "
                f"(it serves {', '.join(families)}); remove it"
            )
        elif item["type"] == "extra_forbidden":
            yield f"{location}: unknown key{_nearest(item['loc'], tree)}"
        elif item["type"] == "literal_error" and location == "train.objective":
            yield f"{location}: must be one of {', '.join(FAMILIES)} (given: {item['input']!r})"
        elif item["type"] == "missing":
            yield f"{location}: required, and absent"
        elif item["type"] == "string_type" and isinstance(item["input"], bool | int | float):
            yield f"{location}: text is needed, and YAML reads this as {item['input']!r}; write it in quotes"
        else:
            secret = any(name in SECRET_FIELDS for name in item["loc"])
            value = "" if secret or isinstance(item["input"], dict) else f" (given: {redacted(repr(item['input']))})"
            yield f"{location}: {item['msg'].removeprefix('Value error, ')}{value}"


def _nearest(location: tuple[int | str, ...], tree: type[BaseModel]) -> str:
    section = tree
    for part in location[:-1]:
        if isinstance(part, str):
            section = _section_type(section.model_fields[part].annotation)
    known = list(section.model_fields)
    if close := difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5):
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(known[:12])}" + ", …" * (len(known) > 12)


def _section_type(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if argument not in (type(None), Ellipsis):
            return _section_type(argument)
    raise AssertionError(f"{annotation} holds no section")
