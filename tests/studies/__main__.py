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
    steps: Annotated[int | None, typer.Option(min=1, help="of each training; default: the demo's")] = None,
    only: Annotated[list[str] | None, typer.Option(help="a family's name, as often as needed; default: all")] = None,
    folder: Annotated[Path | None, typer.Option(help="for cache and runs; default: families in the demo's")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of every family")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Every family of drafts on the demo's target, from one cache: acceptance length, and by depth. Resumes."""
    from tests.studies.families import measure_families

    report = measure_families(
        demo, steps=steps, names=only or (), folder=folder, seeds=range(seeds), report=reporter(as_json)
    )
    print_report(report, as_json)


@app.command("codecs")
def codecs(
    folder: Annotated[Path, typer.Argument(help="of a finished demo")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="trainings of every encoding")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="of each training; default: the demo's")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes at once, of one thread each")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Every encoding of the demo's cache: bytes a token, error, and the draft that is trained from it. Resumes."""
    from tests.studies.codecs import measure_codecs

    print_report(measure_codecs(folder, seeds=range(seeds), max_steps=steps, jobs=jobs), as_json)


if __name__ == "__main__":
    main(app)
