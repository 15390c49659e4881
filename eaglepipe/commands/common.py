"""What the commands share: their arguments, loading a recipe, and printing what they return."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from eaglepipe.errors import CacheError, ConfigError

RecipeArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe that ships")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


class Report(Protocol):
    """What a measurement returns, for programs and for people."""

    def to_json(self) -> dict[str, Any]: ...

    def table(self) -> str: ...


def load(recipe: str, overrides: list[str] | None) -> Any:
    from eaglepipe.recipe.load import load_recipe

    return load_recipe(recipe_path(recipe), overrides or ())


def recipe_path(recipe: str) -> Path:
    import difflib

    from eaglepipe.resources import shipped_recipes

    shipped = shipped_recipes()
    if Path(recipe).is_file() or recipe not in shipped:
        if not Path(recipe).is_file() and not recipe.endswith((".yaml", ".yml")):
            close = difflib.get_close_matches(recipe, shipped, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"those that ship: {', '.join(shipped)}"
            raise ConfigError(f"no recipe {recipe!r}, neither a file nor one that ships; {hint}")
        return Path(recipe)
    return shipped[recipe]


def cache_shares(recipe: Any) -> Any:
    """What a recipe is trained from: the caches that it names, by its words or, where they fail, by content.

    Raises:
        CacheError: there is none.
    """
    from eaglepipe.cache.storage import CacheShare, caches_of

    try:
        return caches_of(recipe)
    except CacheError:
        from eaglepipe.precompute.stage import find_by_content

        if (folder := find_by_content(recipe)) is None:
            raise
        return [CacheShare(folder=folder)]


def reporter(as_json: bool) -> Any:
    """Messages go to standard error where standard output carries JSON."""
    return lambda message: typer.echo(message, err=as_json)


def _speaks() -> bool:
    """Under torchrun the processes share one standard output, and its first one prints the result."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"


def print_json(value: Any, as_json: bool) -> None:
    if as_json and _speaks():
        typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def print_fields(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(fields, as_json)
        return
    if not _speaks():
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        typer.echo(f"{name:{width}}  {_readable(value)}")


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_readable(item) for item in value) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_report(report: Report, as_json: bool) -> None:
    """Print a report as JSON or as its table."""
    if as_json:
        print_json(report.to_json(), as_json)
    else:
        typer.echo(report.table())
