"""Texts that a recipe may hold: those that a file and a path can."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from eaglepipe.errors import ConfigError
from eaglepipe.stores.urls import is_url, parse_location


def check_text(value: Any) -> Any:
    """Check a setting if it is a text; returns it.

    Raises:
        ValueError: it holds a NUL character, or half a surrogate pair.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("holds a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("holds half a surrogate pair, which has no UTF-8; rename what it names")
    return value


def _check_path(path: str) -> str:
    try:
        Path(path).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home of a user who is not on this machine") from None
    return path


def _check_file(path: str) -> str:
    if Path(path).name in ("", ".."):
        raise ValueError("is not the name of a file")
    return path


def _check_location(text: str) -> str:
    if is_url(text):
        try:
            parse_location(text)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return text
    return _check_path(text)


PathText = Annotated[str, AfterValidator(_check_path)]
"""A local path, or what may be one; `~` stands for a home."""
LocationText = Annotated[str, AfterValidator(_check_location)]
"""A local path, or the URL of a folder in an object store."""
FileText = Annotated[PathText, AfterValidator(_check_file)]
"""The path of a file that is written."""
