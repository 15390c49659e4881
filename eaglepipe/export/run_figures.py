"""The figures of a run that its card shows, read from train.json, which anyone may have written."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eaglepipe.errors import CorruptError
from eaglepipe.files.json_object import read_json_object

_Count = Annotated[int, Field(ge=0, le=2**53)]
_Figure = Annotated[float, Field(ge=-1e9, le=1e9)]
_Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(max_length=100)]


class RunFigures(BaseModel):
    """The part of train.json that a card shows; figures are null in a run that held nothing out."""

    model_config = ConfigDict(strict=True, frozen=True)

    steps: _Count
    best_step: _Count
    tokens: _Count
    supervised_tokens: _Count
    heldout_samples: _Count = 0
    heldout_loss_end: _Figure | None = None
    simulated_acceptance_length_end: _Figure | None = None
    accuracy_by_depth: _Shares | None = None
    conditional_acceptance_by_depth: _Shares | None = None


def read_figures(path: Path) -> dict[str, Any]:
    """Return the figures of a run's train.json, empty if there is none.

    Raises:
        CorruptError: it is not the file that `eaglepipe train` writes.
    """
    if not path.exists():
        return {}
    read_json_object(path)  # for its own errors
    try:
        return RunFigures.model_validate_json(path.read_bytes()).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise CorruptError(
            f"{path}: {field}: {first['msg']}; train again, or move the file away for a card without its figures"
        ) from None
