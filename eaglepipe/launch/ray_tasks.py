"""Tasks as processes on the machines of a Ray cluster, which share the file system of cache and logs."""

import importlib.util
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eaglepipe.errors import EXIT_STOPPED, ConfigError, ResourceError, first_line
from eaglepipe.launch.child import start_child
from eaglepipe.launch.launched import Launch, log_path
from eaglepipe.launch.options import TaskOptions

_KILLED = -signal.SIGKILL
_POLL_SECONDS = 0.2
_WAIT_SECONDS = 0.5


def require_ray() -> None:
    """Check that Ray is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--on ray needs the ray package: pip install 'eaglepipe[ray]'")


def run_task(command: Sequence[str], log: str, folder: str, variables: Mapping[str, str], title: str) -> int:
    """Run a task in a worker of Ray; returns its exit code. If Ray cancels it, the task saves its work first."""
    process = start_child(command, Path(log), folder=folder, variables=variables, title=title)
    while True:
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
            return int(process.returncode)
        except KeyboardInterrupt:  # how Ray cancels
            process.terminate()


class RayExecutor:
    """Tasks of Ray, each of which watches one process; Ray's own retries are off, as the supervisor counts them."""

    def __init__(self, folder: Path, launch: Launch, options: TaskOptions, *, address: str | None) -> None:
        """Join a cluster: that of `address`, else of $RAY_ADDRESS, else one that is started on this machine.

        Raises:
            ConfigError: Ray is missing.
            ResourceError: the cluster does not answer.
        """
        require_ray()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent that nobody asked for
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray, self._folder, self._launch = ray, folder, launch
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error", include_dashboard=False)
        except Exception as error:  # noqa: BLE001  Ray raises this very class if a node does not start in time
            where = address or os.environ.get("RAY_ADDRESS") or "this machine, where one was to be started"
            raise ResourceError(f"no Ray cluster at {where}: {first_line(error)}") from None
        needs: dict[str, Any] = {"num_cpus": options.cpus or 1, "num_gpus": options.num_gpus}
        if options.memory_bytes is not None:
            needs["memory"] = options.memory_bytes
        self._check(needs)
        self._function = ray.remote(max_retries=0, **needs)(run_task)
        self._running: dict[Any, int] = {}
        self._asked: set[Any] = set()

    def _check(self, needs: Mapping[str, float]) -> None:
        names = {"num_cpus": ("CPU", "--cpus"), "num_gpus": ("GPU", "--gpus"), "memory": ("memory", "--mem")}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for need, (name, option) in names.items():
            most = max((node.get(name, 0) for node in nodes), default=0)
            if needs.get(need, 0) > most:
                raise ConfigError(
                    f"{option}: a task needs {needs[need]:,} of {name}, and the largest node of Ray has {most:,.0f}"
                )

    def start(self, task: int, attempt: int) -> None:
        reference = self._function.remote(
            self._launch.task_command(self._folder, str(task)),
            str(log_path(self._folder, task)),
            self._launch.working_folder,
            {},
            f"task {task}, attempt {attempt}",
        )
        self._running[reference] = task

    def ended(self) -> list[tuple[int, int]]:
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_WAIT_SECONDS)
        return [(self._running.pop(reference), self._code(reference)) for reference in done]

    def _code(self, reference: Any) -> int:
        errors = self._ray.exceptions
        try:
            return int(self._ray.get(reference))
        except errors.TaskCancelledError:
            return EXIT_STOPPED
        except errors.RayTaskError as error:
            raise ConfigError(f"a task could not be started on a node of Ray: {first_line(error.cause)}") from None
        except errors.RayError:  # its worker, or the node, is gone
            return _KILLED

    def stop(self) -> None:
        for reference in self._running:
            if reference not in self._asked:
                self._asked.add(reference)
                self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """Leave the cluster, or end it if it was started for this."""
        self._ray.shutdown()
