"""`python -m tests.studies`: long comparisons on a finished demo, run from the repository."""

from pathlib import Path
from typing import Annotated

import typer

from eaglepipe.cli import main
from eaglepipe.commands.common import JsonOption, print_report, reporter

app = typer.Typer(
    help="Compare encodings or families of drafts on a finished demo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("families")
def families(
    demo: Annotated[Path, typer.Option(help="folder of a finished demo")] = Path("runs/demo"),
    recipe: Annotated[
        Path | None, typer.Option(help="recipe of an EAGLE-3 draft of another target, in place of the demo's")
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="of the recipe, as train.seed=1")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="of each training; default: the recipe's")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="of each training, in place of steps: as many as take that long")
    ] = None,
    clock: Annotated[str, typer.Option(help="of --seconds: wall, or cpu, the seconds of all threads")] = "wall",
    only: Annotated[list[str] | None, typer.Option(help="a family's name, as often as needed; default: all")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="for cache and runs; default: families in the demo's, or runs/NAME-families")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of every family")] = 1,
    replay: Annotated[
        int, typer.Option(min=0, help="held-out answers to replay in rounds too, as an engine makes them")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Every family of drafts of one target, from one cache: acceptance length, and by depth. Resumes."""
    from eaglepipe.errors import ConfigError
    from tests.studies.families import Budget, measure_families
    from tests.studies.families_base import demo_base, recipe_base
    from tests.studies.step_costs import find_clock

    if steps is not None and seconds is not None:
        raise ConfigError("--steps and --seconds exclude each other")
    if override and recipe is None:
        raise ConfigError("--set changes the recipe that --recipe names")
    if recipe is None:
        place = folder or demo / "families"
        base = demo_base(demo, place)
    else:
        base = recipe_base(recipe, override or ())
        place = folder or Path(f"runs/{base.name}-families")
    report = measure_families(
        base,
        place,
        budget=Budget(steps=steps, seconds=seconds, clock=find_clock(clock)),
        names=only or (),
        seeds=range(seeds),
        replayed=replay,
        report=reporter(as_json),
    )
    print_report(report, as_json)


@app.command("codecs")
def codecs(
    folder: Annotated[Path, typer.Argument(help="of a finished demo")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="trainings of every encoding")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="of each training; default: the demo's")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes at once, of one thread each")] = 2,
    only: Annotated[
        list[str] | None, typer.Option(help="an encoding's name, as often as needed, beside exact; default: all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Every encoding of the demo's cache: bytes a token, error, and the draft that is trained from it. Resumes."""
    from tests.studies.codecs import measure_codecs

    print_report(measure_codecs(folder, seeds=range(seeds), max_steps=steps, jobs=jobs, names=only or ()), as_json)


if __name__ == "__main__":
    main(app)
