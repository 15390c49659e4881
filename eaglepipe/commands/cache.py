"""`eaglepipe cache`: look at caches, check them, change and join them."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from eaglepipe.commands.common import (
    JsonOption,
    Overrides,
    RecipeArgument,
    cache_folder,
    cache_shares,
    load,
    print_either,
    print_fields,
    print_json,
    print_report,
    reporter,
    root_folder,
)
from eaglepipe.errors import EXIT_CORRUPT, EXIT_USER, ConfigError, printable
from eaglepipe.stores.messages import with_urls

CacheArgument = Annotated[Path, typer.Argument(parser=cache_folder, metavar="CACHE", help="a cache's folder or URL")]
NewCacheArgument = Annotated[
    Path, typer.Argument(parser=cache_folder, metavar="NEW_CACHE", help="folder or URL of the new cache")
]

app = typer.Typer(help="Look at caches, check them, change and join them, tidy them up.", no_args_is_help=True)


@app.command("ls")
def ls(
    root: Annotated[
        Path | None,
        typer.Argument(
            parser=root_folder, metavar="ROOT", help="folder or URL; default: $EAGLEPIPE_CACHE_ROOT, else ./caches"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the caches below a root, with their sizes and targets."""
    from eaglepipe.cache.storage import default_root
    from eaglepipe.cache_tools.describe import describe_root, root_table

    if root is not None and not root.is_dir():
        raise ConfigError(f"{root}: not a folder" if root.exists() else f"{root}: does not exist")
    root = root or default_root()
    described = describe_root(root)
    print_either(described, root_table(described, root), as_json)


@app.command("info")
def info(folder: CacheArgument, as_json: JsonOption = False) -> None:
    """Show a cache's counts, bytes a token, layers, codecs and identity."""
    from eaglepipe.cache_tools.describe import describe_cache

    print_fields(describe_cache(folder), as_json)


@app.command("path")
def path(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Print the folder of the complete cache that a recipe names, or of each in its train.caches."""
    for share in cache_shares(load(recipe, overrides)):
        typer.echo(os.fsencode(with_urls(str(share.folder))))  # the name's own bytes, for a shell


@app.command("verify")
def verify(
    folder: CacheArgument,
    full: Annotated[bool, typer.Option(help="hash every byte")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a cache against its manifest; exit code 3 if something is wrong."""
    from eaglepipe.cache_tools.verify import verify_cache

    report = verify_cache(folder, full=full)
    text = printable("\n".join((*report.problems, *report.notes, report.summary())))
    print_either(report.to_json(), text, as_json)
    if not report.ok:
        raise typer.Exit(EXIT_CORRUPT)


@app.command("diff")
def diff(
    a: CacheArgument,
    b: CacheArgument,
    values: Annotated[bool, typer.Option("--values", help="compare the samples' numbers, matched by id")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="with --values: exit code 2 if a deviation is larger, or tokens differ")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two caches, complete or not, field by field; exit code 2 if they differ."""
    if values:
        from eaglepipe.cache_tools.values.compare import diff_values

        if tolerance is not None and not 0 <= tolerance < float("inf"):
            raise ConfigError(f"--tolerance {tolerance}: give a number from 0 on")
        compared = diff_values(a, b, tolerance=tolerance)
        print_report(compared, as_json)
        if not compared.within_tolerance:
            raise typer.Exit(EXIT_USER)
        return
    if tolerance is not None:
        raise ConfigError("--tolerance is about numbers: give --values, too")
    from eaglepipe.cache.compare import diff_caches

    report = diff_caches(a, b)
    print_report(report, as_json)
    if not report.equal:
        raise typer.Exit(EXIT_USER)


@app.command("peek")
def peek(
    folder: CacheArgument,
    sample: Annotated[str, typer.Option(help="its number, or its id")] = "0",
    top: Annotated[int, typer.Option(min=1, help="tokens to show of each distribution")] = 5,
    rows: Annotated[str | None, typer.Option(help="a:b; default: some, from the first supervised token on")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a stored sample: text, assistant mask, and the target's distribution after each supervised token."""
    from eaglepipe.cache_tools.peek_texts import peek_cache

    peek = peek_cache(folder, sample, top=top, rows=rows)
    print_either(peek.to_json(), peek.text(colour=sys.stdout.isatty()), as_json)


@app.command("import")
def import_states(
    tool: Annotated[str, typer.Argument(metavar="FROM", help="speculators, specforge, nemo or modelopt")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder that the tool has written")],
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="read and check every sample, plan, write no shard")] = False,
    workers: Annotated[str | None, typer.Option(help="i/n: this process takes shards i, i+n, ...")] = None,
    seal: Annotated[bool, typer.Option(help="import nothing, write the manifest of a finished cache")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a cache of another tool's hidden states, without running the target. Run it again to resume.

    The recipe names the target, whose norm and head are read, and the cache's encodings; its data.sources are not read.
    """
    from dataclasses import asdict

    from eaglepipe.precompute.claims import parse_worker
    from eaglepipe.precompute.imported.command import import_overrides
    from eaglepipe.precompute.stage import run_precompute

    loaded = load(recipe, import_overrides(tool, folder, overrides or ()))
    report = reporter(as_json)
    result = run_precompute(loaded, dry_run=dry_run, worker=parse_worker(workers), seal_only=seal, report=report)
    if result.complete:
        report(f"train from it by this recipe with train.caches='[{{path: {result.folder}}}]'")
    print_json(asdict(result), as_json)


@app.command("merge")
def merge(
    out: NewCacheArgument,
    parts: Annotated[
        list[Path],
        typer.Argument(parser=cache_folder, metavar="CACHE...", help="two complete caches or more, of one target"),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make one cache of several that share target, tokenizer, layers, vocabulary and encodings. Run again to resume."""
    from eaglepipe.cache_tools.derive import result_json
    from eaglepipe.cache_tools.merge import merge_caches

    print_fields(result_json(out, merge_caches(out, parts)), as_json)


@app.command("recode")
def recode(
    out: NewCacheArgument,
    source: CacheArgument,
    aux_codec: Annotated[
        str | None, typer.Option(help="aux states: bf16, fp16, fp32, fp8, int8, int4, rot2 to rot6")
    ] = None,
    supervision: Annotated[
        str | None, typer.Option(help="dense, sparse, sampled or hidden, from what is stored")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="hidden states: as above; probabilities: fp16 or fp32")] = None,
    draft_size: Annotated[int | None, typer.Option(help="another draft vocabulary, from `hidden` supervision")] = None,
    vocab_from: Annotated[
        Path | None, typer.Option(parser=cache_folder, metavar="FOLDER", help="that of a cache or of a published draft")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="mass left to the tail, with --supervision sparse")] = None,
    max_entries: Annotated[int | None, typer.Option(help="of a token, with --supervision sparse")] = None,
    draws: Annotated[int | None, typer.Option(help="entries of a token at most, with --supervision sampled")] = None,
    draw_seed: Annotated[int | None, typer.Option(help="of the entries, with --supervision sampled")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a cache in other encodings, or with another draft vocabulary, without the target; report the error."""
    from eaglepipe.cache_tools.recode import Changes, recode_cache

    changes = Changes(
        aux_codec=aux_codec,
        supervision=supervision,
        codec=codec,
        draft_size=draft_size,
        vocab_from=vocab_from,
        tolerance=tolerance,
        max_entries=max_entries,
        draws=draws,
        draw_seed=draw_seed,
    )
    print_report(recode_cache(out, source, changes), as_json)


@app.command("repair")
def repair(
    folder: CacheArgument,
    overrides: Overrides = None,
    recipe: Annotated[
        str | None, typer.Option(help="the recipe that made it, if its plan is damaged; default: as its plan declares")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the files again that `verify --full` names, from the target and the corpus; all others stay."""
    from eaglepipe.cache_tools.repair import repair_cache

    loaded = None if recipe is None else load(recipe, overrides)
    print_report(repair_cache(folder, recipe=loaded, overrides=overrides or (), report=reporter(as_json)), as_json)


@app.command("copy")
def copy(
    source: CacheArgument,
    out: NewCacheArgument,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="leave damaged files out, for a copy that is then repaired")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a complete cache, every byte checked, between folders and stores. Run again to resume."""
    from eaglepipe.cache_tools.copy import copy_cache

    report = copy_cache(source, out, skip_damaged=damaged)
    print_report(report, as_json)
    if report.left_out:
        raise typer.Exit(EXIT_CORRUPT)


@app.command("clean")
def clean(
    folder: Annotated[
        Path, typer.Argument(parser=root_folder, metavar="CACHE", help="a cache, or the root of all: folder or URL")
    ],
    dry_run: Annotated[bool, typer.Option(help="only list what would be removed")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove the files that stopped writers left behind in a cache, or in all below a root."""
    from eaglepipe.cache.clean import clean_cache
    from eaglepipe.cache.remote.stored import abort_uploads

    uploads = abort_uploads(folder, dry_run=dry_run)
    removed = [*uploads, *(with_urls(str(path)) for path in clean_cache(folder, dry_run=dry_run))]
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {path}" for path in removed] or ["nothing to remove"]
    print_either({"dry_run": dry_run, "paths": removed}, printable("\n".join(lines)), as_json)
