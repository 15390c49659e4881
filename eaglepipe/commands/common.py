"""Shared by the commands: their arguments, loading a recipe, and printing results."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from eaglepipe.errors import CacheError, ConfigError
from eaglepipe.stores.messages import with_urls


def cache_folder(text: str) -> Path:
    """Return the folder of a cache that the command line names; of a URL, the local one that stands for it."""
    from eaglepipe.stores.urls import is_url

    if not is_url(text):
        return Path(text)
    from eaglepipe.cache.remote.pull import opened_location

    return opened_location(text)


def root_folder(text: str) -> Path:
    """Return the folder of a cache or of the root of caches that the command line names, as `cache_folder` does.

    Of what is below a root, only what the command asks for is fetched.
    """
    from eaglepipe.stores.urls import is_url

    if not is_url(text):
        return Path(text)
    from eaglepipe.stores.local import local_folder

    return local_folder(text)


RecipeArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe that ships")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed")]
RunArgument = Annotated[Path, typer.Argument(help="a run folder that `eaglepipe train` wrote")]
RunCaches = Annotated[
    list[Path] | None,
    typer.Option("--cache", parser=cache_folder, metavar="CACHE", help="its cache; default: as in its recipe"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


class Report(Protocol):
    """A result that programs and people can read."""

    def to_json(self) -> dict[str, Any]: ...

    def table(self) -> str: ...


def load(recipe: str, overrides: list[str] | None) -> Any:
    from eaglepipe.recipe.load import load_recipe

    return load_recipe(recipe_path(recipe), overrides or ())


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe: the path itself, or that of one that ships.

    Raises:
        ConfigError: it is neither a file, nor named like one, nor a recipe that ships.
    """
    from difflib import get_close_matches

    from eaglepipe.resources import shipped_recipes

    path, shipped = Path(recipe), shipped_recipes()
    if not path.is_file() and recipe in shipped:
        return shipped[recipe]
    if not path.is_file() and path.suffix not in (".yaml", ".yml"):
        close = get_close_matches(recipe, shipped, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"those that ship: {', '.join(shipped)}"
        raise ConfigError(f"no recipe {recipe!r}, neither a file nor one that ships; {hint}")
    return path


def cache_shares(recipe: Any) -> Any:
    """Return the caches that a recipe names, found by its own fields or, if those lead nowhere, by content.

    Raises:
        CacheError: there is none.
    """
    from eaglepipe.cache.storage import CacheShare, caches_of

    try:
        return caches_of(recipe)
    except CacheError:
        from eaglepipe.precompute.existing_caches import find_by_content

        if (folder := find_by_content(recipe)) is None:
            raise
        return [CacheShare(folder=folder)]


def reporter(as_json: bool) -> Any:
    """Return a printer of messages, which go to standard error if standard output carries JSON."""
    return lambda message: typer.echo(with_urls(message), err=as_json)


def print_json(value: Any, as_json: bool) -> None:
    if as_json and is_first_process():
        typer.echo(with_urls(json.dumps(value, indent=1, ensure_ascii=False)))


def print_either(value: Any, text: Any, as_json: bool) -> None:
    """Print a result as JSON or as text."""
    print_json(value, as_json)
    if not as_json:
        typer.echo(with_urls(str(text)))


def print_report(report: Report, as_json: bool) -> None:
    """Print a report as JSON or as its table."""
    print_either(report.to_json(), report.table(), as_json)


def print_fields(fields: dict[str, Any], as_json: bool) -> None:
    """Print fields as JSON or as a table of names and values."""
    print_json(fields, as_json)
    if not as_json and is_first_process():
        from eaglepipe.tables import field_table

        typer.echo(with_urls(field_table({name: _readable(value) for name, value in fields.items()})))


def is_first_process() -> bool:
    """Return whether this is rank 0: under torchrun all share one output, and the first one prints the result."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
