"""The check of rows of metrics.jsonl when they are read: a run folder may come from anywhere."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import from_json

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Number = Annotated[float, Field(ge=-1e300, le=1e300)]  # finite, and with room to add some
_TYPES: dict[Any, Any] = {
    int: _Count,
    float: _Number | None,  # null: NaN
    tuple[float, ...]: Annotated[tuple[_Number, ...], Field(min_length=1, max_length=1000)],
}


class RowParser:
    """Parses rows that are one of several records (dataclasses), each by its `kind`."""

    def __init__(self, records: Mapping[str, type]) -> None:
        self._models = {kind: _model(record) for kind, record in records.items()}

    def parse(self, line: bytes) -> dict[str, Any]:
        """Return the row of a line, NaN as None.

        Raises:
            ValueError: not JSON, of another kind, or without a field of its record; says which, on one line.
        """
        value = from_json(line)
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in self._models:
            raise ValueError(f"its kind is none of {', '.join(self._models)}")
        try:
            row = self._models[kind].model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(": ".join([*map(str, first["loc"]), first["msg"]])) from None
        return {"kind": kind, **row.model_dump()}


def _model(record: type) -> type[BaseModel]:
    types: dict[str, Any] = {field.name: (_TYPES[field.type], ...) for field in fields(record)}
    model: type[BaseModel] = create_model(record.__name__, __config__=ConfigDict(strict=True), **types)
    return model
