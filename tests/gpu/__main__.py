"""`python -m tests.gpu`: what a machine with an accelerator does with this code, in one table within ten minutes."""

from pathlib import Path
from typing import Annotated

import typer

from eaglepipe.cli import main
from eaglepipe.errors import ConfigError
from eaglepipe.files.publish import publish_bytes
from tests.gpu.report import PRESETS, check_device, chosen_presets, device_name, measure_all, table

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)


@app.command()
def gpu(
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda",
    preset: Annotated[
        list[str] | None, typer.Option(help="of `bench step`, or tiny; as often as needed; default: both of 8B")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="of every measurement")] = 3,
    out: Annotated[Path, typer.Option(help="file of the table")] = Path("runs/gpu.txt"),
) -> None:
    """Run the tests of CUDA, then measure training steps, stage 1 and the loader; leave one table."""
    if device not in ("cuda", "cpu"):
        raise ConfigError(f"--device {device!r}: cuda or cpu")
    check_device(device)
    presets = chosen_presets(preset or PRESETS, device)
    rows = measure_all(presets, device=device, rounds=rounds, say=lambda text: typer.echo(text, err=True))
    text = table(rows, device_name(device))
    typer.echo(text)
    publish_bytes(out, f"{text}\n".encode())
    typer.echo(f"the table is in {out}", err=True)
    if any(row.failed for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    main(app)
