"""The command line: parses and calls, nothing else. Heavy imports happen inside the commands."""

import io
import os
import re
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from eaglepipe import __version__
from eaglepipe.commands import bench, cache, data, evaluate, jobs
from eaglepipe.commands import recipe as recipes
from eaglepipe.commands.common import (
    JsonOption,
    Overrides,
    RecipeArgument,
    RunArgument,
    RunCaches,
    cache_shares,
    load,
    print_either,
    print_fields,
    print_json,
    print_report,
    reporter,
)
from eaglepipe.commands.export import export
from eaglepipe.commands.launch import RankReport, end_with_launcher, is_launched, run_ranks
from eaglepipe.errors import (
    EXIT_STOPPED,
    EXIT_USER,
    ConfigError,
    EaglepipeError,
    ResourceError,
    StoppedError,
    printable,
    shortened,
)
from eaglepipe.families import DEFAULT_FAMILY, FAMILIES
from eaglepipe.files.system_errors import require_threads, uncaught_error
from eaglepipe.freed_memory import keep_freed_memory
from eaglepipe.signals import STOP_SIGNALS
from eaglepipe.stop_watch import ends_by_itself, unhurried, watch_stops
from eaglepipe.stores.messages import with_urls

app = typer.Typer(
    name="eaglepipe",
    help="Compute a target model once, train any number of EAGLE drafts from the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
GpusOption = Annotated[int | None, typer.Option(min=1, help="run as so many processes, one a GPU of this machine")]

app.add_typer(cache.app, name="cache")
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipe")
app.add_typer(bench.app, name="bench")
app.add_typer(jobs.app, name="launch")
app.command("export")(export)
app.command("eval")(evaluate.evaluate)


def main(command: typer.Typer = app) -> None:
    """Run the command line; expected errors end with their exit code and one message, without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8, and are written out then
        sys.stdout.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    watch_stops(_report)
    end_with_launcher()
    try:
        command()
    except EaglepipeError as error:
        _fail(error)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_USER)
    except BaseException as error:  # panics of Rust are no Exception
        # torch's errors are known by their words, as torch may not have been imported
        if isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error)):
            message = (
                f"out of memory: {str(error).partition(chr(10))[0] or 'no detail'}. Lower what is computed at once "
                "(precompute.batch_tokens, train.micro_batch_tokens, --batch-size) or the draft, and run it again"
            )
            _fail(ResourceError(message))
        if (explained := uncaught_error(error)) is None:
            raise
        _fail(explained)


def _stop(number: int, _: FrameType | None) -> None:
    """Stop at once, which loses nothing unless a stage waits for its step to end: files appear whole or not at all."""
    raise StoppedError(f"stopped by {signal.Signals(number).name}; what was published stays, run it again to continue")


def _fail(error: EaglepipeError) -> None:
    with unhurried():  # not while the process is being ended anyway
        _report(error)
    sys.exit(error.exit_code)


def _report(error: EaglepipeError) -> None:
    if not RankReport.write(error):
        _print_error(str(error), error.exit_code)


def _print_error(message: str, code: int) -> None:
    name = "stopped" if code == EXIT_STOPPED else "error"
    if message:  # none if another rank has it
        print(f"{name}: {shortened(printable(with_urls(message)))}", file=sys.stderr, flush=True)


def _end_as_ranks(gpus: int | None) -> None:
    """Run this very command once more, as ranks, and end as they do; nothing if it is one of them, or the only one."""
    if gpus is not None and not is_launched():
        if "LOCAL_RANK" in os.environ:
            raise ConfigError("--gpus starts the processes of one machine itself; leave it out under torchrun")
        with unhurried():  # each rank answers signals by itself
            ending = run_ranks([sys.executable, "-m", "eaglepipe", *sys.argv[1:]], gpus)
            ends_by_itself()  # with the ranks' message, however long they took to stop
        _print_error(ending.message, ending.code)
        sys.exit(ending.code)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"eaglepipe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print it and end")
    ] = False,
) -> None:
    require_threads()


@app.command()
def precompute(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="plan, keep the tokenised corpus, estimate, run no forward")] = False,
    workers: Annotated[str | None, typer.Option(help="i/n: this process takes shards i, i+n, ...")] = None,
    seal: Annotated[bool, typer.Option(help="compute nothing, write the manifest of a finished cache")] = False,
    wait: Annotated[
        bool, typer.Option(help="do not leave shards of this share to another process that holds them, wait for it")
    ] = False,
    gpus: GpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 1: run the target once, leave a cache. Run it again to resume."""
    from eaglepipe.precompute.claims import parse_worker
    from eaglepipe.precompute.stage import run_precompute

    if gpus is not None and workers is not None:
        raise ConfigError("--gpus and --workers both divide the shards; --gpus is for one machine, --workers for many")
    loaded = load(recipe, overrides)
    worker = parse_worker(workers)
    if not (dry_run or seal):
        _end_as_ranks(gpus)
    result = run_precompute(loaded, dry_run=dry_run, worker=worker, seal_only=seal, wait=wait, report=reporter(as_json))
    print_json(asdict(result), as_json)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="find the cache, build the draft, print the plan, take no step")
    ] = False,
    gpus: GpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stage 2: train a draft from the cache; the target is not loaded. Run it again to resume."""
    from eaglepipe.commands.used_caches import report_caches
    from eaglepipe.train import preview_training, run_training

    loaded = load(recipe, overrides)
    if not dry_run:
        _end_as_ranks(gpus)
    caches = cache_shares(loaded)
    report_caches(loaded, caches)
    result = preview_training(loaded, caches) if dry_run else run_training(loaded, caches)
    print_fields(asdict(result), as_json)


@app.command()
def estimate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    entries: Annotated[
        float | None, typer.Option(min=1, help="mean entries of a supervised token, with sparse supervision")
    ] = None,
    measure: Annotated[bool, typer.Option(help="load the target and measure --entries on the first samples")] = False,
    disk_rate: Annotated[float, typer.Option(min=0.001, help="GB/s that the disk reads and writes")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Price a cache of the recipe's corpus in every profile: bytes a token, total, time, free disk."""
    from eaglepipe.estimate.prices import estimate_recipe

    report = estimate_recipe(
        load(recipe, overrides), entries=entries, measure=measure, disk_bytes_per_second=disk_rate * 1e9
    )
    print_report(report, as_json)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="everything is written here")] = Path("runs/demo"),
    fast: Annotated[bool, typer.Option(help="one minute instead of five, for a draft of no use")] = False,
    objective: Annotated[str, typer.Option(help=f"one of {', '.join(FAMILIES)}")] = DEFAULT_FAMILY.name,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on data and a target made here: corpus, target, cache, draft, summary."""
    from eaglepipe.demo.run import run_demo
    from eaglepipe.demo.size import FAST, STANDARD

    summary = run_demo(folder, size=FAST if fast else STANDARD, objective=objective, report=reporter(as_json))
    print_json(summary, as_json)


@app.command()
def report(
    run: RunArgument,
    cache: RunCaches = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a run on one page: loss, acceptance, speed and its cache, as HTML and PNG plots."""
    from eaglepipe.evaluation.report.page import write_report

    page = write_report(run, cache)
    print_either({"report": str(page)}, page, as_json)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show this machine's versions, devices, free disk and settings from the environment."""
    from eaglepipe.doctor import examine

    print_fields(examine(), as_json)


if __name__ == "__main__":
    main()
