"""trackio: a run in its local database, or on the Space or server of $TRACKIO_SPACE_ID or $TRACKIO_SERVER_URL.

A local run is written into the database itself: `trackio.init` would ask the Hub for the name of whoever is logged in.
"""

import os
from typing import Any

PROJECT = "eaglepipe"


class TrackioFile:
    """A run in the local database; a row that it has already, of a step that is taken again, is not added twice."""

    def __init__(self, *, run_id: str, name: str, config: dict[str, Any]) -> None:
        from trackio.sqlite_storage import SQLiteStorage

        self._storage, self._config = SQLiteStorage, config
        self._name, self._id = f"{name}-{run_id}", run_id

    def add(self, values: dict[str, float], step: int) -> None:
        kind = next(iter(values)).partition("/")[0]
        self._storage.bulk_log(
            PROJECT,
            self._name,
            [dict(values)],
            steps=[step],
            config=self._config,
            log_ids=[f"{self._id}-{kind}-{step}"],
            run_id=self._id,
        )

    def close(self) -> None:
        return None


class TrackioRun:
    """A run on a server."""

    def __init__(self, *, run_id: str, name: str, config: dict[str, Any]) -> None:
        import trackio

        self._run = trackio.init(
            PROJECT,
            name=f"{name}-{run_id}",
            config=config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def open_trackio(*, run_id: str, name: str, config: dict[str, Any]) -> TrackioFile | TrackioRun:
    """Return a run where the environment says."""
    is_remote = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
    return (TrackioRun if is_remote else TrackioFile)(run_id=run_id, name=name, config=config)
