"""From a recipe and options to started tasks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from eaglepipe.cache.manifest import PLAN_NAME, Plan, load_document
from eaglepipe.cache.published import missing_shards
from eaglepipe.cache.remote.pull import pull
from eaglepipe.cache.storage import named_caches
from eaglepipe.errors import ConfigError
from eaglepipe.files.lock import folder_lock
from eaglepipe.launch.launched import (
    Launch,
    default_command,
    default_folder,
    launches,
    new_folder,
    read_launch,
    record_job,
    record_launch,
    working_folder,
)
from eaglepipe.launch.local import LocalExecutor, local_at_once
from eaglepipe.launch.options import TaskOptions
from eaglepipe.launch.ray_tasks import RayExecutor, require_ray
from eaglepipe.launch.slurm import job_script, require_sbatch, submit
from eaglepipe.launch.status import is_active
from eaglepipe.launch.supervisor import supervise
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.tree import Recipe
from eaglepipe.target.load import resolve_folder

EXECUTORS = ("slurm", "ray", "local")
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for."""

    stage: str
    executor: str
    tasks: int = 1
    options: TaskOptions
    logs: Path | None = None
    command: tuple[str, ...] = ()
    address: str | None = None


@dataclass(frozen=True, kw_only=True)
class Started:
    """What was started; `job` is a scheduler's, and the tasks of the other executors have ended."""

    folder: str
    executor: str
    job: str | None
    tasks: tuple[int, ...]


def check_request(request: Request, recipe: Recipe) -> None:
    """Check what can be known before anything is planned or started.

    Raises:
        ConfigError: options that contradict each other, or what is not on this machine.
    """
    options = request.options
    options.check(request.executor)
    one_gpu = recipe.target.engine == "transformers" or recipe.data.imported is not None
    if request.stage == "precompute" and one_gpu and options.num_gpus > 1:
        raise ConfigError(
            f"--gpus {options.gpus}: a task uses one GPU with target.engine transformers; take --gpus 1 and more "
            "--tasks, or target.engine=vllm with tensor_parallel_size in target.engine_args"
        )


def preview(request: Request, recipe: Recipe) -> str:
    """Return what would be started, without planning a cache: Slurm's script, or the commands."""
    begun = next((cache for cache in named_caches(recipe) if cache.manifest is None), None)
    if request.stage == "precompute" and begun is not None:
        _check_tasks(request.tasks, begun.plan.shards)
    folder = (request.logs or default_folder(recipe)).absolute() / f"{request.stage}-NNNN"
    launch = _launch(request)
    if request.executor == "slurm":
        return job_script(folder, launch, range(request.tasks), request.options)
    return "\n".join(" ".join(launch.task_command(folder, str(task))) for task in range(request.tasks))


def start(request: Request, recipe: Recipe, report: Report) -> Started | None:
    """Plan the cache if there is none yet, and start the tasks that have something to do; None if there is nothing.

    With Slurm, this returns once the job is in the queue; else when all tasks have ended.

    Raises:
        EaglepipeError: what `run_precompute` raises in planning, or an executor that is not there or refuses.
        FailedTasksError, StoppedError: as `supervise`.
    """
    {"slurm": require_sbatch, "ray": require_ray, "local": lambda: None}[request.executor]()
    parent = request.logs or default_folder(recipe)
    _refuse_second(parent, request.stage)
    tasks: tuple[int, ...] = (0,)
    if request.stage == "precompute":
        tasks = _planned_tasks(request.tasks, recipe, report)
        if not tasks:
            return None
    folder, launch = new_folder(parent, request.stage), _launch(request)
    record_launch(folder, launch, recipe)
    if request.executor == "slurm":
        launch = record_job(folder, launch, submit(folder, job_script(folder, launch, tasks, request.options)))
        report(f"submitted as job {launch.job}, {len(tasks)} task(s); scripts and logs are in {folder}")
    else:
        _run_here(request, folder, launch, tasks, report)
    return Started(folder=str(folder), executor=request.executor, job=launch.job, tasks=tasks)


def _run_here(request: Request, folder: Path, launch: Launch, tasks: tuple[int, ...], report: Report) -> None:
    options = request.options
    report(f"{len(tasks)} task(s); their logs are in {folder}")
    with folder_lock(folder):
        if request.executor == "local":
            at_once = local_at_once(len(tasks), options)
            executor = LocalExecutor(folder, launch, options, at_once=at_once)
            supervise(executor, folder, tasks, at_once=at_once, retries=options.retries, report=report)
            return
        cluster = RayExecutor(folder, launch, options, address=request.address)
        try:
            at_once = min(options.at_once or len(tasks), len(tasks))
            supervise(cluster, folder, tasks, at_once=at_once, retries=options.retries, report=report)
        finally:
            cluster.close()


def _launch(request: Request) -> Launch:
    num_gpus = request.options.num_gpus
    ranks = ("--gpus", str(num_gpus)) if request.stage == "train" and num_gpus > 1 else ()
    return Launch(
        stage=request.stage,
        executor=request.executor,
        tasks=request.tasks,
        command=request.command or default_command(),
        arguments=("--wait",) if request.stage == "precompute" else ranks,
        working_folder=working_folder(),
    )


def _planned_tasks(tasks: int, recipe: Recipe, report: Report) -> tuple[int, ...]:
    """Return the numbers of the tasks that have shards left, once the corpus is tokenised and the cache planned."""
    result = run_precompute(recipe, dry_run=True, report=report)
    if not result.folder:  # the weights decide the cache's identity, and each task would download them
        resolve_folder(recipe.target)
        result = run_precompute(recipe, dry_run=True, report=report)
    if result.complete:
        return ()
    _check_tasks(tasks, result.shards)
    folder = Path(result.folder)
    pull(folder)
    missing = missing_shards(folder, load_document(folder / PLAN_NAME, Plan))
    return tuple(sorted({shard % tasks for shard in missing})) or (0,)  # one seals what others have filled


def _check_tasks(tasks: int, shards: int) -> None:
    if tasks > shards:
        raise ConfigError(
            f"--tasks {tasks}: the cache has {shards} shard(s), so tasks from {shards} on would have nothing to do; "
            f"use --tasks {shards}, or a smaller cache.shard_bytes"
        )


def _refuse_second(parent: Path, stage: str) -> None:
    for folder in launches(parent):
        launch = read_launch(folder)
        if launch.stage == stage and is_active(folder, launch):
            job = f", job {launch.job}" if launch.job else ""
            raise ConfigError(
                f"{folder}{job}: still waiting or running; see `eaglepipe launch status`, or end it with "
                "`eaglepipe launch cancel`"
            )


def after(request: Request, job: str) -> Request:
    """Return a request that starts when a job of Slurm has succeeded."""
    return replace(request, options=replace(request.options, after=job))
