"""`eaglepipe bench`: ratios against a reference measured in the same run."""

from pathlib import Path
from typing import Annotated

import typer

from eaglepipe.commands.common import (
    JsonOption,
    print_json,
    report_bench,
    reporter,
)

app = typer.Typer(help="Measure against a reference in the same run.", no_args_is_help=True)


@app.command("memory")
def memory(
    times: Annotated[int, typer.Option(min=2, help="how many times larger the second corpus is")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Peak memory of both stages, and the cost of a token, on a small corpus and on one many times larger."""
    from eaglepipe.bench.memory import measure_memory

    report = measure_memory(times)
    print_json(report.to_json(), as_json)
    if not as_json:
        typer.echo(report.table())


@app.command("step")
def step(
    preset: Annotated[str, typer.Option(help="cpu-chat, cpu-full, llama3.1-8b or qwen3-8b")] = "cpu-chat",
    rounds: Annotated[int | None, typer.Option(min=1, help="default: the preset's")] = None,
    as_json: JsonOption = False,
) -> None:
    """A training step: the compact path against the plain reference and against its matrix products alone."""
    from eaglepipe.bench.step import measure_step
    from eaglepipe.bench.step_presets import find_step_preset

    report_bench(measure_step(find_step_preset(preset), rounds=rounds), as_json)


@app.command("read")
def read(
    folder: Annotated[Path | None, typer.Argument(help="a complete cache; default: one made for this")] = None,
    as_json: JsonOption = False,
) -> None:
    """Reading a cache into training batches, against a plain read of the same bytes."""
    from eaglepipe.bench.read import measure_read

    report_bench(measure_read(folder), as_json)


@app.command("precompute")
def precompute(as_json: JsonOption = False) -> None:
    """Stage 1, against the target's own forward over the same batches."""
    from eaglepipe.bench.precompute import measure_precompute

    report_bench(measure_precompute(), as_json)


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
    from eaglepipe.bench.families import measure_families

    found = measure_families(
        demo, steps=steps, names=only or (), folder=folder, seeds=range(seeds), report=reporter(as_json)
    )
    report_bench(found, as_json)


@app.command("codecs")
def codecs(
    folder: Annotated[Path, typer.Argument(help="of a finished demo")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="trainings of every encoding")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="of each training; default: the demo's")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes at once, of one thread each")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Every encoding of the demo's cache: bytes a token, error, and the draft that is trained from it."""
    from eaglepipe.bench.codecs import measure_codecs

    report_bench(measure_codecs(folder, seeds=range(seeds), max_steps=steps, jobs=jobs), as_json)
