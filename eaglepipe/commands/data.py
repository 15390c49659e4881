"""`eaglepipe data`: look at the conversations, or let the target answer or write them."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from eaglepipe.commands.common import JsonOption, Overrides, RecipeArgument, load, print_json, reporter

app = typer.Typer(help="Look at the conversations, or let the target answer them itself.", no_args_is_help=True)


@app.command("preview")
def preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="samples to show")] = 3,
) -> None:
    """Samples as the target reads them, the supervised part marked."""
    from eaglepipe.precompute.preview import preview_recipe

    typer.echo(preview_recipe(load(recipe, overrides), count=count, colour=sys.stdout.isatty()))


@app.command("regenerate")
def regenerate(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonOption = False) -> None:
    """Let the target answer the prompts of `regenerate.sources` itself. Run it again to resume."""
    from eaglepipe.generation.regenerate import run_regenerate

    result = run_regenerate(load(recipe, overrides), report=reporter(as_json))
    print_json(asdict(result), as_json)


@app.command("synthesize")
def synthesize(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonOption = False) -> None:
    """Let the target write prompts itself, for want of a data set. Run it again to resume."""
    from eaglepipe.generation.synthesis.synthesize import run_synthesize

    result = run_synthesize(load(recipe, overrides), report=reporter(as_json))
    print_json(asdict(result), as_json)
