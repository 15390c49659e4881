"""The command line: parses and calls, nothing else. Heavy imports happen inside the commands."""

import json
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from eaglepipe import __version__
from eaglepipe.errors import (
    EXIT_CORRUPT,
    EXIT_RESOURCES,
    EXIT_STOPPED,
    EXIT_USER,
    ConfigError,
    EaglepipeError,
    StoppedError,
    printable,
)

app = typer.Typer(
    name="eaglepipe",
    help="Compute a target model once, train any number of EAGLE drafts from the cache.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(help="Look at caches, check them, change and join them, tidy them up.", no_args_is_help=True)
data_app = typer.Typer(help="Look at the conversations, or let the target answer them itself.", no_args_is_help=True)
recipe_app = typer.Typer(help="The recipes that ship with eaglepipe.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure against a reference in the same run.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
app.add_typer(data_app, name="data")
app.add_typer(recipe_app, name="recipe")
app.add_typer(bench_app, name="bench")

RecipeArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe that ships")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as often as needed")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
CacheArgument = Annotated[Path, typer.Argument(help="a cache folder")]
NewCacheArgument = Annotated[Path, typer.Argument(help="folder of the new cache")]


def main() -> None:
    """Run a command; expected errors end with their exit code and one message, without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except EaglepipeError as error:
        _fail(str(error), error.exit_code)
    except MemoryError as error:
        _fail(f"out of memory: {error}; lower the batch_tokens settings", EXIT_RESOURCES)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_USER)


def _stop(number: int, _: FrameType | None) -> None:
    """Where no stage waits for its step to end, stopping at once loses nothing: files appear whole or not at all."""
    raise StoppedError(f"stopped by {signal.Signals(number).name}; what was published stays, run it again to continue")


def _fail(message: str, code: int) -> None:
    name = "stopped" if code == EXIT_STOPPED else "error"
    print(f"{name}: {printable(message)}", file=sys.stderr, flush=True)
    sys.exit(code)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"eaglepipe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print it and end")
    ] = False,
) -> None: ...


@app.command()
def precompute(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="plan and estimate, run no forward")] = False,
    workers: Annotated[str | None, typer.Option(help="i/n: this process takes shards i, i+n, ...")] = None,
    seal: Annotated[bool, typer.Option(help="compute nothing, write the manifest of a finished cache")] = False,
    as_json: JsonOption = False,
) -> None:
    """Stage 1: run the target once, leave a cache. Run it again to resume."""
    from eaglepipe.precompute import parse_worker, run_precompute

    loaded = _load(recipe, overrides)
    worker = parse_worker(workers)
    result = run_precompute(loaded, dry_run=dry_run, worker=worker, seal_only=seal, report=_reporter(as_json))
    _print_json(result.to_json(), as_json)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option(help="find the cache, build the draft, print the plan, take no step")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Stage 2: train a draft from the cache; the target is not loaded. Run it again to resume."""
    from eaglepipe.cache.storage import caches_of
    from eaglepipe.train import preview_training, run_training

    loaded = _load(recipe, overrides)
    caches = caches_of(loaded)
    result = preview_training(loaded, caches) if dry_run else run_training(loaded, caches)
    _print_fields(asdict(result), as_json)


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
    """What the recipe's corpus would cost to cache, in every profile: bytes a token, total, time, free disk."""
    from eaglepipe.target.estimate import estimate_recipe

    report = estimate_recipe(
        _load(recipe, overrides), entries=entries, measure=measure, disk_bytes_per_second=disk_rate * 1e9
    )
    _print_json(report.to_json(), as_json)
    if not as_json:
        typer.echo(report.table())


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="everything is written here")] = Path("runs/demo"),
    fast: Annotated[bool, typer.Option(help="a minute in place of five, and a draft that shows it")] = False,
    as_json: JsonOption = False,
) -> None:
    """The whole pipeline on data and a target made here: corpus, target, cache, draft, summary."""
    from eaglepipe.demo.run import run_demo

    summary = run_demo(folder, fast=fast, report=_reporter(as_json))
    _print_json(summary, as_json)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What this machine has: versions, devices, free disk, settings from the environment."""
    from eaglepipe.doctor import examine

    _print_fields(examine(), as_json)


@cache_app.command("ls")
def cache_ls(
    root: Annotated[Path | None, typer.Argument(help="default: $EAGLEPIPE_CACHE_ROOT, else ./caches")] = None,
    as_json: JsonOption = False,
) -> None:
    """The caches below a root, and what each was made from."""
    from eaglepipe.cache.describe import describe_root, root_table
    from eaglepipe.cache.storage import default_root

    described = describe_root(root or default_root())
    _print_json(described, as_json)
    if not as_json:
        typer.echo(root_table(described))


@cache_app.command("info")
def cache_info(folder: CacheArgument, as_json: JsonOption = False) -> None:
    """What a cache holds: counts, bytes a token, layers, codecs, identity."""
    from eaglepipe.cache.describe import describe_cache

    _print_fields(describe_cache(folder), as_json)


@cache_app.command("path")
def cache_path(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """The folder of the complete cache that a recipe names."""
    from eaglepipe.cache.storage import find_cache

    typer.echo(find_cache(_load(recipe, overrides)))


@cache_app.command("verify")
def cache_verify(
    folder: CacheArgument,
    full: Annotated[bool, typer.Option(help="hash every byte")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a cache against its manifest; exit code 3 where something is wrong."""
    from eaglepipe.cache.verify import verify_cache

    report = verify_cache(folder, full=full)
    _print_json(report.to_json(), as_json)
    if not as_json:
        for line in (*report.problems, *report.notes):
            typer.echo(line)
        typer.echo(report.verdict())
    if not report.ok:
        raise typer.Exit(EXIT_CORRUPT)


@cache_app.command("diff")
def cache_diff(a: CacheArgument, b: CacheArgument, as_json: JsonOption = False) -> None:
    """What tells two caches apart, field by field; exit code 2 where they differ. Incomplete ones too."""
    from eaglepipe.cache.compare import diff_caches

    report = diff_caches(a, b)
    _print_json(report.to_json(), as_json)
    if not as_json:
        typer.echo(report.table())
    if not report.equal:
        raise typer.Exit(EXIT_USER)


@cache_app.command("peek")
def cache_peek(
    folder: CacheArgument,
    sample: Annotated[str, typer.Option(help="its number, or its id")] = "0",
    top: Annotated[int, typer.Option(min=1, help="tokens to show of each distribution")] = 5,
    rows: Annotated[str | None, typer.Option(help="a:b; default: some, from the first supervised token on")] = None,
    as_json: JsonOption = False,
) -> None:
    """One sample as it is stored: text, assistant mask, and what the target says after each supervised token."""
    from eaglepipe.chat.peek import peek_cache

    peek = peek_cache(folder, sample, top=top, rows=rows)
    _print_json(peek.to_json() if as_json else None, as_json)
    if not as_json:
        typer.echo(peek.text(colour=sys.stdout.isatty()))


@cache_app.command("merge")
def cache_merge(
    out: NewCacheArgument,
    parts: Annotated[list[Path], typer.Argument(help="two complete caches or more, of one target")],
    as_json: JsonOption = False,
) -> None:
    """Make one cache of several that share target, tokenizer, layers, vocabulary and encodings. Run again to resume."""
    from eaglepipe.cache.derive import result_json
    from eaglepipe.cache.merge import merge_caches

    _print_fields(result_json(out, merge_caches(out, parts)), as_json)


@cache_app.command("recode")
def cache_recode(
    out: NewCacheArgument,
    source: CacheArgument,
    aux_codec: Annotated[str | None, typer.Option(help="of the aux states")] = None,
    supervision: Annotated[str | None, typer.Option(help="another kind, made from the one that is stored")] = None,
    codec: Annotated[str | None, typer.Option(help="of the supervision rows")] = None,
    draft_size: Annotated[int | None, typer.Option(help="another draft vocabulary, from `hidden` supervision")] = None,
    vocab_from: Annotated[Path | None, typer.Option(help="the draft vocabulary of that cache")] = None,
    tolerance: Annotated[float | None, typer.Option(help="mass left to the tail, with --supervision sparse")] = None,
    max_entries: Annotated[int | None, typer.Option(help="of a token, with --supervision sparse")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a cache in other encodings, or with another draft vocabulary, without the target; report the error."""
    from eaglepipe.recode import Changes, recode_cache

    changes = Changes(
        aux_codec=aux_codec,
        supervision=supervision,
        codec=codec,
        draft_size=draft_size,
        vocab_from=vocab_from,
        tolerance=tolerance,
        max_entries=max_entries,
    )
    result = recode_cache(out, source, changes)
    _print_json(result.to_json(), as_json)
    if not as_json:
        typer.echo(result.table())


@cache_app.command("clean")
def cache_clean(
    folder: CacheArgument, dry_run: Annotated[bool, typer.Option(help="only say what would go")] = False
) -> None:
    """Remove what stopped writers left behind in a cache."""
    from eaglepipe.cache.storage import clean_cache

    removed = clean_cache(folder, dry_run=dry_run)
    for path in removed:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {path}")
    if not removed:
        typer.echo("nothing to remove")


@data_app.command("preview")
def data_preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="samples to show")] = 3,
) -> None:
    """Samples as the target reads them, the supervised part marked."""
    from eaglepipe.target.preview import preview_recipe

    typer.echo(preview_recipe(_load(recipe, overrides), count=count, colour=sys.stdout.isatty()))


@data_app.command("regenerate")
def data_regenerate(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonOption = False) -> None:
    """Let the target answer the prompts of `regenerate.sources` itself. Run it again to resume."""
    from eaglepipe.regenerate import run_regenerate

    result = run_regenerate(_load(recipe, overrides), report=_reporter(as_json))
    _print_json(result.to_json(), as_json)


@recipe_app.command("ls")
def recipe_ls(as_json: JsonOption = False) -> None:
    """Names and purposes of the recipes that ship."""
    from eaglepipe.resources import shipped_recipes

    purposes = {name: _purpose(path) for name, path in shipped_recipes().items()}
    _print_json(purposes, as_json)
    if not as_json:
        for name, purpose in purposes.items():
            typer.echo(f"{name:18} {purpose}")


@recipe_app.command("show")
def recipe_show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """The resolved recipe, defaults and overrides included."""
    from eaglepipe.config import dump_recipe

    typer.echo(dump_recipe(_load(recipe, overrides)), nl=False)


@recipe_app.command("cp")
def recipe_cp(
    name: Annotated[str, typer.Argument(help="a recipe that ships")],
    destination: Annotated[Path, typer.Argument(help="file to write")],
) -> None:
    """Copy a recipe that ships, to change it."""
    if destination.exists():
        raise ConfigError(f"{destination} exists; it is not overwritten")
    source = _recipe_path(name)
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    typer.echo(f"{destination}")


@bench_app.command("memory")
def bench_memory(
    times: Annotated[int, typer.Option(min=2, help="how many times larger the second corpus is")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Peak memory of both stages, and the cost of a token, on a small corpus and on one many times larger."""
    from eaglepipe.bench.memory import measure_memory

    report = measure_memory(times)
    _print_json(report.to_json(), as_json)
    if not as_json:
        typer.echo(report.table())


@bench_app.command("step")
def bench_step(
    preset: Annotated[str, typer.Option(help="cpu-chat, cpu-full, llama3.1-8b or qwen3-8b")] = "cpu-chat",
    rounds: Annotated[int | None, typer.Option(min=1, help="default: the preset's")] = None,
    as_json: JsonOption = False,
) -> None:
    """A training step: the compact path against the plain reference and against its matrix products alone."""
    from eaglepipe.bench.step import measure_step
    from eaglepipe.bench.step_presets import find_step_preset

    _report_bench(measure_step(find_step_preset(preset), rounds=rounds), as_json)


@bench_app.command("read")
def bench_read(
    folder: Annotated[Path | None, typer.Argument(help="a complete cache; default: one made for this")] = None,
    as_json: JsonOption = False,
) -> None:
    """Reading a cache into training batches, against a plain read of the same bytes."""
    from eaglepipe.bench.read import measure_read

    _report_bench(measure_read(folder), as_json)


@bench_app.command("precompute")
def bench_precompute(as_json: JsonOption = False) -> None:
    """Stage 1, against the target's own forward over the same batches."""
    from eaglepipe.bench.precompute import measure_precompute

    _report_bench(measure_precompute(), as_json)


def _report_bench(report: Any, as_json: bool) -> None:
    if as_json:
        _print_json(report.to_json(), as_json)
    else:
        typer.echo(report.table())


def _load(recipe: str, overrides: list[str] | None) -> Any:
    from eaglepipe.config import load_recipe

    return load_recipe(_recipe_path(recipe), overrides or ())


def _recipe_path(recipe: str) -> Path:
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


def _purpose(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def _reporter(as_json: bool) -> Any:
    """Messages go to standard error where standard output carries JSON."""
    return lambda message: typer.echo(message, err=as_json)


def _print_json(value: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _print_fields(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(fields, as_json)
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


if __name__ == "__main__":
    main()
