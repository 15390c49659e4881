"""What has become of a launch: shards done by task, states, and the last lines of those that failed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eaglepipe.cache.published import missing_shards
from eaglepipe.cache.remote.pull import pull
from eaglepipe.cache.storage import FoundCache, named_caches
from eaglepipe.errors import ConfigError, EaglepipeError
from eaglepipe.files.lock import FOLDER_LOCK, is_locked
from eaglepipe.launch import slurm
from eaglepipe.launch.launched import (
    RECIPE,
    Launch,
    default_folder,
    ending_path,
    launches,
    log_path,
    read_launch,
)
from eaglepipe.launch.supervisor import describe, last_lines
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.tables import text_table

_FAILED = ("failed", "lost")


@dataclass(frozen=True, kw_only=True)
class _Observed:
    """What Slurm has in its queue, what its accounting knows, and whether a launcher of this machine runs."""

    queued: Mapping[int, slurm.TaskState] = field(default_factory=dict)
    ended: Mapping[int, str] = field(default_factory=dict)
    is_running: bool = False


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """A task: `shards` of the cache are its share, `done` of them published."""

    task: int
    state: str
    detail: str
    attempts: int
    shards: int
    done: int
    last_lines: tuple[str, ...]
    log: str


@dataclass(frozen=True, kw_only=True)
class LaunchStatus:
    """A launch and its tasks; `cache` is empty until there is a plan."""

    folder: str
    stage: str
    executor: str
    job: str | None
    cache: str
    complete: bool
    tasks: tuple[TaskStatus, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        job = f", job {self.job}" if self.job else ""
        lines = [f"{self.stage} on {self.executor}{job}: {self.folder}"]
        if self.stage == "precompute":
            done, total = sum(task.done for task in self.tasks), sum(task.shards for task in self.tasks)
            lines.append(f"cache {self.cache or 'not planned'}: {done} of {total} shards{', complete' * self.complete}")
        rows = [
            (str(t.task), t.state, f"{t.done}/{t.shards}" if t.shards else "-", str(t.attempts), _told(t))
            for t in self.tasks
        ]
        lines.append(
            text_table(
                {"task": "right", "state": "left", "shards": "right", "attempts": "right", "last line": "left"},
                rows,
                indent=2,
            )
        )
        for task in self.tasks:
            if task.state in _FAILED:
                lines.append(f"task {task.task}: {task.detail}; {task.log} ends with")
                lines += [f"  {line}" for line in task.last_lines]
        return "\n".join(lines)


def statuses(recipe: Recipe, logs: Path | None) -> list[LaunchStatus]:
    """Return the newest launch of each stage of a recipe, in the order in which they were started.

    Raises:
        ConfigError: there was none.
    """
    newest: dict[str, Path] = {}
    for folder in launches(logs or default_folder(recipe)):
        newest[read_launch(folder).stage] = folder
    if not newest:
        raise ConfigError(
            f"nothing was launched of this recipe from here: {logs or default_folder(recipe)} holds no launch; "
            "name its folder with --logs"
        )
    return [status(folder) for folder in newest.values()]


def status(folder: Path) -> LaunchStatus:
    """Return what has become of a launch."""
    launch, recipe = read_launch(folder), load_recipe(folder / RECIPE)
    cache = next(iter(named_caches(recipe)), None)
    missing = None if cache is None else _missing(cache)
    seen = _observe(folder, launch)
    total = 0 if cache is None or launch.stage != "precompute" else cache.plan.shards
    numbers = range(launch.tasks)
    tasks = []
    for number in numbers:
        share = range(number, total, launch.tasks)
        done = sum(shard not in (missing or ()) for shard in share)
        log = log_path(folder, number)
        state, detail = _state(folder, launch, number, seen, is_done=0 < len(share) == done)
        tasks.append(
            TaskStatus(
                task=number,
                state=state,
                detail=detail,
                attempts=_attempts(log),
                shards=len(share),
                done=done,
                last_lines=tuple(last_lines(log)),
                log=str(log),
            )
        )
    return LaunchStatus(
        folder=str(folder),
        stage=launch.stage,
        executor=launch.executor,
        job=launch.job,
        cache="" if cache is None else str(cache.folder),
        complete=cache is not None and cache.manifest is not None,
        tasks=tuple(tasks),
    )


def is_active(folder: Path, launch: Launch) -> bool:
    """Return whether a launch still has tasks in a queue or running; one that cannot be asked is taken for ended."""
    try:
        seen = _observe(folder, launch)
    except EaglepipeError:
        return False
    return bool(seen.queued) or seen.is_running


def cancel(recipe: Recipe, logs: Path | None) -> list[str]:
    """Cancel what is left of a recipe's launches in Slurm; returns the jobs.

    Raises:
        ConfigError: one of them runs in the foreground of another terminal, which Ctrl-C there ends.
    """
    jobs = []
    for folder in launches(logs or default_folder(recipe)):
        launch = read_launch(folder)
        if not is_active(folder, launch):
            continue
        if launch.job is None:
            raise ConfigError(f"{folder}: runs in the foreground of another terminal; end it there with Ctrl-C")
        jobs.append(launch.job)
    for job in jobs:  # all are known by now: those that wait for one end with it
        slurm.cancel(job)
    return jobs


def _observe(folder: Path, launch: Launch) -> _Observed:
    if launch.executor != "slurm" or launch.job is None:
        return _Observed(is_running=is_locked(folder / FOLDER_LOCK))
    return _Observed(queued=slurm.task_states(launch.job), ended=slurm.ended_states(launch.job))


def _state(folder: Path, launch: Launch, task: int, seen: _Observed, *, is_done: bool) -> tuple[str, str]:
    """Return a task's state in a word, and how it ended if it failed."""
    if task in seen.queued:
        reason = seen.queued[task].reason
        return seen.queued[task].state.lower() + (f" ({reason})" if reason else ""), ""
    code = _code(folder, task)
    if is_done or code == 0:
        return "done", ""
    if code is not None:
        return "failed", describe(code)
    if seen.is_running:
        return ("running" if log_path(folder, task).exists() else "waiting"), ""
    if launch.executor == "slurm" and launch.job is None:
        return "not submitted", ""
    state = seen.ended.get(task)
    how = f"Slurm says {state}" if state else "it ended without an exit code, as if its machine had failed"
    return "lost", how


def _missing(cache: FoundCache) -> frozenset[int]:
    if cache.manifest is not None:
        return frozenset()
    pull(cache.folder)
    return frozenset(missing_shards(cache.folder, cache.plan))


def _code(folder: Path, task: int) -> int | None:
    try:
        return int(ending_path(folder, task).read_text())
    except (OSError, ValueError):
        return None


def _attempts(log: Path) -> int:
    try:
        with log.open("rb") as stream:
            return sum(line.startswith((b"--- job ", b"--- task ")) for line in stream)
    except OSError:
        return 0


def _told(task: TaskStatus) -> str:
    return task.last_lines[-1][:100] if task.last_lines else task.detail
