"""Tasks as processes of this machine."""

import os
import subprocess
import time
from pathlib import Path

from eaglepipe.errors import ConfigError
from eaglepipe.launch.child import start_child
from eaglepipe.launch.launched import Launch, log_path
from eaglepipe.launch.options import TaskOptions

_POLL_SECONDS = 0.05


class LocalExecutor:
    """Child processes, each with GPUs and threads of its own."""

    def __init__(self, folder: Path, launch: Launch, options: TaskOptions, *, at_once: int) -> None:
        self._folder, self._launch, self._options = folder, launch, options
        self._slots = list(range(at_once))
        self._threads = max((options.cpus or (os.cpu_count() or 1) // at_once), 1)
        self._devices = _devices() if options.num_gpus else []
        self._running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}  # task -> slot and process
        self._asked: set[int] = set()

    def start(self, task: int, attempt: int) -> None:
        slot, num_gpus = self._slots.pop(0), self._options.num_gpus
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self._threads))}
        if num_gpus:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(self._devices[slot * num_gpus : (slot + 1) * num_gpus])
        process = start_child(
            self._launch.task_command(self._folder, str(task)),
            log_path(self._folder, task),
            folder=self._launch.working_folder,
            variables=variables,
            title=f"task {task}, attempt {attempt}",
        )
        self._running[task] = slot, process

    def ended(self) -> list[tuple[int, int]]:
        time.sleep(_POLL_SECONDS)
        ended = [(task, process.poll()) for task, (_, process) in self._running.items()]
        for task, code in ended:
            if code is not None:
                self._slots.append(self._running.pop(task)[0])
        return [(task, code) for task, code in ended if code is not None]

    def stop(self) -> None:
        for task, (_, process) in self._running.items():
            if task not in self._asked:
                self._asked.add(task)
                process.terminate()


def local_at_once(tasks: int, options: TaskOptions) -> int:
    """Return how many tasks run at a time: as many as there are GPUs for, if they need any.

    Raises:
        ConfigError: a task needs more GPUs than there are.
    """
    wanted = min(options.at_once or tasks, tasks)
    if not options.num_gpus:
        return wanted
    fitting = len(_devices()) // options.num_gpus
    if fitting == 0:
        raise ConfigError(f"--gpus {options.num_gpus}: this machine has {len(_devices())}")
    return min(wanted, fitting)


def _devices() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
