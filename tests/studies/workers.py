"""Independent pieces of a measurement in a few processes; stopping it stops them, after they have saved."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from eaglepipe.progress import ProgressLine
from tests.processes import WARM

Key = TypeVar("Key")
Result = TypeVar("Result")


class Workers:
    """`jobs` processes of one thread each; as a context manager."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool = ProcessPoolExecutor(jobs, mp_context=WARM)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def all(self, what: str, work: Mapping[Key, Callable[[], Result]]) -> dict[Key, Result]:
        """Call all, in order as processes become free; the first error ends the others and is raised.

        None is handed over before a process is free for it, so that a stop leaves none to be begun.
        """
        waiting = iter(work.items())
        running: dict[Future[Result], Key] = {}
        results: dict[Key, Result] = {}
        with ProgressLine(what, total=len(work), unit="done") as progress, _stopping_children():
            while len(results) < len(work):
                for key, call in waiting:
                    running[self._pool.submit(call)] = key
                    if len(running) == self._jobs:
                        break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    results[running.pop(future)] = future.result()
                    progress.update(1)
        return {key: results[key] for key in work}


@contextmanager
def _stopping_children() -> Iterator[None]:
    try:
        yield
    except BaseException:
        for process in WARM.active_children():
            process.terminate()
        raise
