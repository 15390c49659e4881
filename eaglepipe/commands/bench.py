"""`eaglepipe bench`: ratios against a reference measured in the same run."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from eaglepipe.commands.common import JsonOption, print_report

app = typer.Typer(help="Measure against a reference in the same run.", no_args_is_help=True)


@app.command("memory")
def memory(
    times: Annotated[int, typer.Option(min=2, help="how many times larger the second corpus is")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Compare both stages' peak memory, and a token's cost, on a small corpus and on one many times larger."""
    from eaglepipe.bench.memory import measure_memory

    print_report(measure_memory(times), as_json)


@app.command("step")
def step(
    preset: Annotated[str, typer.Option(help="cpu-chat, cpu-full, cpu-sparse, llama3.1-8b or qwen3-8b")] = "cpu-chat",
    rounds: Annotated[int | None, typer.Option(min=1, help="default: the preset's")] = None,
    objective: Annotated[Literal["eagle3", "dflash"], typer.Option(help="family whose step is measured")] = "eagle3",
    peers: Annotated[
        bool,
        typer.Option("--peers", help="with the steps of installed packages: speculators, specforge, nemo-automodel"),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare a training step with the plain reference and with its matrix products alone."""
    from eaglepipe.bench.step import measure_step
    from eaglepipe.bench.step_presets import find_step_preset

    chosen = find_step_preset(preset)
    if objective == "dflash":
        from eaglepipe.bench.dflash.measure import measure_dflash_step

        print_report(measure_dflash_step(chosen, rounds=rounds, peers=peers), as_json)
        return
    print_report(measure_step(chosen, rounds=rounds, peers=peers), as_json)


@app.command("read")
def read(
    folder: Annotated[Path | None, typer.Argument(help="a complete cache; default: one made for this")] = None,
    profile: Annotated[
        str | None, typer.Option(help="of the cache that is made: exact, compact, lean or tiny; default: exact")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare reading a cache into training batches with a plain read of the same bytes."""
    from eaglepipe.bench.read import measure_read

    print_report(measure_read(folder, profile=profile), as_json)


@app.command("precompute")
def precompute(as_json: JsonOption = False) -> None:
    """Compare stage 1 with the target's own forward over the same batches."""
    from eaglepipe.bench.precompute import measure_precompute

    print_report(measure_precompute(), as_json)
