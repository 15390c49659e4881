"""`eaglepipe launch`: stages as tasks of a scheduler."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from eaglepipe.commands.common import (
    JsonOption,
    Overrides,
    RecipeArgument,
    cache_shares,
    load,
    print_either,
    print_json,
    reporter,
)
from eaglepipe.errors import ConfigError

app = typer.Typer(
    help="Run a stage on many machines, by Slurm or Ray, or as processes of this one.", no_args_is_help=True
)

ExecutorOption = Annotated[str, typer.Option("--on", help="slurm, ray or local")]
LogsOption = Annotated[
    Path | None, typer.Option(help="folder of scripts and logs, a sub-folder a launch; default: runs/NAME/launch")
]
GpusOption = Annotated[str | None, typer.Option(help="GPUs of a task; with Slurm also a type, as in a100:2")]
CpusOption = Annotated[int | None, typer.Option(min=1, help="cores of a task")]
MemoryOption = Annotated[str | None, typer.Option(help="memory of a task, as in 64G")]
TimeOption = Annotated[str | None, typer.Option(help="time limit of a task, as Slurm writes it: 4:00:00, 2-12:00:00")]
PartitionOption = Annotated[str | None, typer.Option(help="Slurm's partition")]
AccountOption = Annotated[str | None, typer.Option(help="account to charge")]
QosOption = Annotated[str | None, typer.Option(help="quality of service")]
ConstraintOption = Annotated[str | None, typer.Option(help="features that a node must have")]
SbatchOption = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="any other option of sbatch, as often as needed")
]
SetupOption = Annotated[
    list[str] | None, typer.Option(help="line of shell before the stage, as in 'module load cuda'; as often as needed")
]
AfterOption = Annotated[
    str | None, typer.Option(help="start once this job of Slurm has succeeded; also a dependency, as in afterany:123")
]
RetriesOption = Annotated[int, typer.Option(min=0, help="how often a task that was killed is started again")]
CommandOption = Annotated[
    str | None, typer.Option(help="how eaglepipe is called where tasks run; default: this Python with -m eaglepipe")
]
AddressOption = Annotated[str | None, typer.Option(help="Ray cluster; default: $RAY_ADDRESS, else one on this machine")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="print the script or the commands, start nothing")]


@app.command("precompute")
def precompute(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: ExecutorOption = "slurm",
    tasks: Annotated[int, typer.Option(help="processes that share the shards: task i takes i, i+N, ...")] = 1,
    at_once: Annotated[int | None, typer.Option(min=1, help="tasks that run at a time; default: all")] = None,
    then: Annotated[str | None, typer.Option(metavar="train", help="start stage 2 once all tasks are done")] = None,
    gpus: GpusOption = None,
    cpus: CpusOption = None,
    mem: MemoryOption = None,
    time: TimeOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    qos: QosOption = None,
    constraint: ConstraintOption = None,
    sbatch: SbatchOption = None,
    setup: SetupOption = None,
    after: AfterOption = None,
    retries: RetriesOption = 3,
    command: CommandOption = None,
    address: AddressOption = None,
    logs: LogsOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plan a cache here, then fill it by N tasks; launch again to resume. The last task writes the manifest."""
    if tasks < 1:
        raise ConfigError(f"--tasks {tasks}: at least 1 task is needed")
    if then not in (None, "train"):
        raise ConfigError(f"--then {then!r}: only train can follow")
    options = _options(
        gpus=gpus, cpus=cpus, mem=mem, time=time, partition=partition, account=account, qos=qos, constraint=constraint,
        sbatch=sbatch, setup=setup, after=after, retries=retries, at_once=at_once,
    )  # fmt: skip
    request = _request("precompute", on, options, tasks=tasks, logs=logs, command=command, address=address)
    _launch(load(recipe, overrides), request, then_train=then is not None, dry_run=dry_run, as_json=as_json)


@app.command("train")
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: ExecutorOption = "slurm",
    gpus: GpusOption = None,
    cpus: CpusOption = None,
    mem: MemoryOption = None,
    time: TimeOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    qos: QosOption = None,
    constraint: ConstraintOption = None,
    sbatch: SbatchOption = None,
    setup: SetupOption = None,
    after: AfterOption = None,
    retries: RetriesOption = 3,
    command: CommandOption = None,
    address: AddressOption = None,
    logs: LogsOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train on one machine of a cluster, with as many ranks as --gpus; it goes on after a time limit by itself."""
    options = _options(
        gpus=gpus, cpus=cpus, mem=mem, time=time, partition=partition, account=account, qos=qos, constraint=constraint,
        sbatch=sbatch, setup=setup, after=after, retries=retries, at_once=None,
    )  # fmt: skip
    request = _request("train", on, options, tasks=1, logs=logs, command=command, address=address)
    loaded = load(recipe, overrides)
    if after is None and not dry_run:
        cache_shares(loaded)  # without one the task would only fail later
    _launch(loaded, request, then_train=False, dry_run=dry_run, as_json=as_json)


@app.command("status")
def status(
    recipe: RecipeArgument, overrides: Overrides = None, logs: LogsOption = None, as_json: JsonOption = False
) -> None:
    """Show shards done by task, and the last lines of tasks that failed, of the newest launch of each stage."""
    from eaglepipe.launch.status import statuses

    found = statuses(load(recipe, overrides), logs)
    print_either([item.to_json() for item in found], "\n\n".join(item.table() for item in found), as_json)


@app.command("cancel")
def cancel(
    recipe: RecipeArgument, overrides: Overrides = None, logs: LogsOption = None, as_json: JsonOption = False
) -> None:
    """Cancel the jobs of a recipe that Slurm still has; what is published stays."""
    from eaglepipe.launch.status import cancel as cancel_jobs

    jobs = cancel_jobs(load(recipe, overrides), logs)
    print_either({"cancelled": jobs}, f"cancelled: {', '.join(jobs)}" if jobs else "nothing is in the queue", as_json)


def _options(**values: Any) -> Any:
    from eaglepipe.launch.options import TaskOptions

    make: Any = TaskOptions
    return make(**{name: tuple(v or ()) if name in ("sbatch", "setup") else v for name, v in values.items()})


def _request(stage: str, executor: str, options: Any, *, command: str | None, **values: Any) -> Any:
    from difflib import get_close_matches

    from eaglepipe.launch.start import EXECUTORS, Request

    if executor not in EXECUTORS:
        close = get_close_matches(executor, EXECUTORS, n=1)
        raise ConfigError(f"--on {executor!r}: " + (f"did you mean {close[0]}?" if close else f"one of {EXECUTORS}"))
    if values["address"] is not None and executor != "ray":
        raise ConfigError(f"--address is an option of --on ray, not of --on {executor}")
    words = tuple(shlex.split(command)) if command else ()
    return Request(stage=stage, executor=executor, options=options, command=words, **values)


def _launch(recipe: Any, request: Any, *, then_train: bool, dry_run: bool, as_json: bool) -> None:
    from dataclasses import replace

    from eaglepipe.launch.start import after, check_request, preview, start

    following = replace(request, stage="train", tasks=1) if then_train else None
    report = reporter(as_json)
    for each in filter(None, (request, following)):
        check_request(each, recipe)
    if dry_run:
        scripts = [preview(request, recipe)]
        if following is not None:
            scripts.append(preview(after(following, "JOB") if request.executor == "slurm" else following, recipe))
        print_either({"scripts": scripts}, "\n\n".join(scripts), as_json)
        return
    first = start(request, recipe, report)
    started = [first]
    if following is not None:
        if first is not None and first.job is not None:
            following = after(following, first.job)
        started.append(start(following, recipe, report))
    print_json({"started": [asdict(item) for item in started if item is not None]}, as_json)
