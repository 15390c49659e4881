"""`eaglepipe export`: write a draft as an engine loads it, or check any draft folder against an engine's rules."""

from pathlib import Path
from typing import Annotated

import typer

from eaglepipe.commands.common import JsonOption, print_json, print_report, reporter
from eaglepipe.errors import EXIT_USER, ConfigError


def export(
    run: Annotated[Path | None, typer.Argument(help="a run folder, or a draft folder in any layout")] = None,
    to: Annotated[str, typer.Option(help="vllm, sglang, speculators or hf (portable)")] = "",
    out: Annotated[Path | None, typer.Option(help="default: RUN/export/<engine>")] = None,
    dtype: Annotated[str, typer.Option(help="of the weights: bfloat16, float16 or float32")] = "bfloat16",
    target_name: Annotated[str | None, typer.Option(help="the target's Hub id, if the recipe has a path")] = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="upload to this Hub repository as well")] = None,
    check: Annotated[Path | None, typer.Option(metavar="DIR", help="write nothing, check this draft folder")] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="the target's folder or GGUF file: for sharper checks, and embeddings that the draft lacks"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a draft for an engine, or --check a draft folder: exit code 2 if it does not fit, 3 if damaged."""
    from eaglepipe.export.layouts import ENGINES

    if (engine := next((name for name in ENGINES if name == to), None)) is None:
        raise ConfigError(f"--to {to or 'is missing'}: one of {', '.join(ENGINES)}")
    if (run is None) == (check is None):
        raise ConfigError("give a run folder to export, or --check DIR")
    others = {} if check is None else {"--out": out, "--target-name": target_name, "--push": push}
    if ignored := [name for name, value in others.items() if value is not None]:
        raise ConfigError(f"{', '.join(ignored)}: has no meaning with --check, which writes nothing; leave it out")
    if target is not None:
        target = _model_folder(target)
    if check is not None:
        from eaglepipe.export.check.check import check_draft
        from eaglepipe.export.target_facts import read_target_facts

        report = check_draft(check, engine, None if target is None else read_target_facts(target))
        print_report(report, as_json)
        if not report.ok:
            raise typer.Exit(EXIT_USER)
        return
    from eaglepipe.export.write import export_draft

    assert run is not None
    print_line = reporter(as_json)
    result = export_draft(run, engine, out=out, dtype=dtype, target_name=target_name, target=target)
    for finding in result.warnings:
        print_line(finding.line())
    print_line(f"{result.folder}: {result.tensors} tensors, {result.bytes:,} bytes, {dtype}, for {engine}")
    address = None
    if push is not None:
        from eaglepipe.export.push import push_folder

        address = push_folder(result.folder, push)
        print_line(f"pushed to {address}")
    print_json({**result.to_json(), "pushed_to": address}, as_json)


def _model_folder(target: Path) -> Path:
    """Return the folder of a target's config and weights; of a GGUF file, that of its dequantised weights."""
    from eaglepipe.target.gguf.files import find_gguf

    if (file := find_gguf(target.expanduser())) is None:
        return target
    from eaglepipe.target.gguf.folder import dequantised_folder

    return dequantised_folder(file)
