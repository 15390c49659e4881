"""A tracker that cannot harm a run: it works in a thread, and its first failure is a warning and its end."""

import queue
import threading
from collections.abc import Callable

from eaglepipe.errors import first_line
from eaglepipe.training.run.metrics import StepRecord
from eaglepipe.training.run.state import Evaluation
from eaglepipe.training.run.trackers.process import TrackerProcess
from eaglepipe.training.run.trackers.values import Drawing, evaluation_values, step_values

CLOSE_SECONDS = 30.0
_WAITING_ROWS = 10_000


class GuardedTracker:
    """A tracker that is opened, fed and closed by a thread of its own, so that no server can hold up a step either."""

    def __init__(self, name: str, open_drawing: Callable[[], Drawing], warn: Callable[[str], None]) -> None:
        self._name, self._open, self._warn = name, open_drawing, warn
        self._rows: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(_WAITING_ROWS)
        self._lock, self._has_failed = threading.Lock(), False
        self._drawing: Drawing | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def add_step(self, record: StepRecord) -> None:
        self._put((step_values(record), record.step))

    def add_evaluation(self, evaluation: Evaluation) -> None:
        self._put((evaluation_values(evaluation), evaluation.step))

    def close(self) -> None:
        """Let the thread send what is left, for `CLOSE_SECONDS` at most."""
        self._put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._fail(f"gave no answer for {CLOSE_SECONDS:.0f} s when it was closed")
            if isinstance(self._drawing, TrackerProcess):
                self._drawing.kill()

    def _put(self, row: tuple[dict[str, float], int] | None) -> None:
        if self._has_failed:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._fail(f"is {_WAITING_ROWS:,} rows behind")

    def _work(self) -> None:
        try:
            drawing = self._drawing = self._open()
            while (row := self._rows.get()) is not None and not self._has_failed:
                drawing.add(*row)
            drawing.close()
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a tracker raises, the run goes on
            self._fail(f"failed: {first_line(error)}")

    def _fail(self, event: str) -> None:
        with self._lock:
            if self._has_failed:
                return
            self._has_failed = True
        self._warn(f"warning: the tracker {self._name} {event}. Training goes on; metrics.jsonl has every number")
