"""`eaglepipe recipe`: the recipes that ship."""

from pathlib import Path
from typing import Annotated

import typer

from eaglepipe.commands.common import JsonOption, Overrides, RecipeArgument, load, print_fields, recipe_path
from eaglepipe.errors import ConfigError

app = typer.Typer(help="The recipes that ship with eaglepipe.", no_args_is_help=True)


@app.command("ls")
def ls(as_json: JsonOption = False) -> None:
    """List the recipes that ship, with their purposes."""
    from eaglepipe.resources import shipped_recipes

    texts = {name: path.read_text(encoding="utf-8") for name, path in shipped_recipes().items()}
    print_fields({name: text.splitlines()[0].lstrip("# ") for name, text in texts.items()}, as_json)


@app.command("show")
def show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print the resolved recipe, defaults and overrides included."""
    from eaglepipe.recipe.load import dump_recipe

    typer.echo(dump_recipe(load(recipe, overrides)), nl=False)


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument(help="a recipe that ships")],
    destination: Annotated[Path, typer.Argument(help="file to write")],
) -> None:
    """Copy a recipe that ships, to change it."""
    if destination.exists():
        raise ConfigError(f"{destination} exists; it is not overwritten")
    from eaglepipe.files.publish import publish_bytes

    publish_bytes(destination, recipe_path(name).read_bytes())
    typer.echo(destination)
