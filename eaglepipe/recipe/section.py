"""The base of all sections of a recipe."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from eaglepipe.recipe.texts import check_text


class Section(BaseModel):
    """One section of a recipe: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _holds_texts(cls, value: Any) -> Any:
        return check_text(value)
