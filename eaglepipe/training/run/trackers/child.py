"""A tracker in a process of its own, which reads rows as JSON lines from standard input and reports its failure.

So whatever a tracker's package prints, asks, starts or leaves to the interpreter's end stays out of the run.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from eaglepipe.errors import first_line
from eaglepipe.training.run.trackers.trackio_run import open_trackio
from eaglepipe.training.run.trackers.wandb_run import WandbRun


def main() -> None:
    """Draw rows until there are no more."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print
    try:
        drawing = _open(json.loads(sys.stdin.readline()))
        for line in sys.stdin:
            row = json.loads(line)
            drawing.add(row["values"], row["step"])
        drawing.close()
    except (Exception, SystemExit) as error:  # noqa: BLE001  of whatever kind, it goes to the run's messages
        report.write(json.dumps(first_line(error)))
        report.flush()
        os._exit(1)  # hooks of packages may wait for a server
    os._exit(0)


def _open(request: dict[str, Any]) -> Any:
    name, folder = request.pop("tracker"), Path(request.pop("folder"))
    return WandbRun(folder / "wandb", **request) if name == "wandb" else open_trackio(**request)


if __name__ == "__main__":
    main()
