"""Stage 1 through vLLM, killed at random moments and in the middle of publishing, and run again until it completes.

`python -m tests.engine.kills FOLDER [RANDOM_KILLS] [PHASE ...]`: phases as in `PHASES`, all by default. After each kill
it tells what a rerun has to redo: the samples that shards without a sidecar held.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.files import publish
from tests.engine.targets import make_served_project
from tests.engine.test_stage_one_by_engine import many_shards
from tests.stage_one import plan_in_an_earlier_order
from tests.tiny_project import TinyProject

PHASES = {
    "shard": (".arrow", "before"),  # all written, not yet published
    "sidecar": (".arrow", "after"),  # the shard is there, its sidecar not
    "counted": ("00001.json", "after"),  # published whole, before the feed hears of it
    "manifest": ("manifest.json", "before"),
    "sealed": ("manifest.json", "after"),  # the cache is complete, its work folder still there
}
ROOT = Path(__file__).parents[2]


def plant(phase: str) -> None:
    """Kill this process, and if it is an engine's the one that started it, when it publishes a file of the phase."""
    name, moment = PHASES[phase]
    move = publish._move

    def killing(source: Path, target: Path) -> None:
        hit = target.name.endswith(name)
        if not hit or moment == "after":
            move(source, target)
        if hit:
            if "eaglepipe.vllm_engine.host" in sys.orig_argv:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    publish._move = killing


def num_samples(path: Path) -> int:
    """Count the record batches that a file holds, finished or not."""
    data, count = path.read_bytes(), 0
    if len(data) <= 8:
        return 0
    with pa.ipc.open_stream(pa.BufferReader(data[8:])) as stream, suppress(pa.ArrowInvalid, OSError, StopIteration):
        while True:
            stream.read_next_batch()
            count += 1
    return count


class Kills:
    """A project, the cache that is being made of it, and what the kills have cost."""

    def __init__(self, folder: Path) -> None:
        self.root, self.site = folder / "caches", folder / "site"
        self.site.mkdir(parents=True)
        code = "import os\nif 'KILL_AT' in os.environ:\n    from tests.engine import kills\n"
        (self.site / "sitecustomize.py").write_text(f"{code}    kills.plant(os.environ['KILL_AT'])\n")
        self.project: TinyProject = make_served_project(folder / "project")
        self.log = folder / "log.txt"
        self.ids: set[str] = set()
        self._renew()

    def _renew(self) -> None:
        """Begin a cache of many shards anew."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.cache = plan_in_an_earlier_order(self.project.recipe(**many_shards(self.root)), 256)

    def published(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.cache / "shards").glob("*.json")}

    def run(self, seconds: float | None = None, phase: str | None = None) -> int:
        """Run stage 1 to its end, or kill it after a time or in a phase; returns its exit code."""
        overrides = [f"{key}={value}" for key, value in many_shards(self.root).items()]
        command = [sys.executable, "-m", "eaglepipe", "precompute", str(self.project.recipe_file), *overrides]
        environment: dict[str, Any] = {**os.environ, "PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}"}
        if phase is not None:
            environment["KILL_AT"] = phase
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                return process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()

    def kill(self, *, seconds: float | None = None, phase: str | None = None) -> None:
        """Kill a run, and check what it leaves: a sound cache in the making, at most two shards of it open."""
        before, started = self.published(), time.monotonic()
        code = self.run(seconds, phase)
        assert code in (0, -signal.SIGKILL), self.log.read_text()[-2000:]
        time.sleep(1.0)  # the engine ends with the process that started it
        after = self.published()
        open_shards = list((self.cache / "shards").glob(".*.arrow.*"))
        lone = [path for path in (self.cache / "shards").glob("*.arrow") if path.with_suffix(".json").name not in after]
        redone = [num_samples(path) for path in (*open_shards, *lone)]
        assert {name: after.get(name) for name in before} == before, "a published shard was written again"
        assert len(open_shards) + len(lone) <= 2, (open_shards, lone)
        what = f"after {seconds:.1f} s" if seconds is not None else f"in the phase {phase}"
        print(
            f"{what}: {'killed' if code else 'ended by itself'} at {time.monotonic() - started:.1f} s; "
            f"{len(before)} -> {len(after)} shards published, {len(open_shards)} open, {len(lone)} without a sidecar, "
            f"samples to redo: {redone or 0}",
            flush=True,
        )
        if code == 0 or phase == "sealed":
            self.complete()
            self._renew()

    def complete(self) -> None:
        """Run to the end, and check that the cache is complete, verified, and holds the same samples as ever."""
        before = self.published()
        assert self.run() == 0, self.log.read_text()[-2000:]
        assert {name: self.published().get(name) for name in before} == before
        assert verify_cache(self.cache).ok
        cache = Cache.open(self.cache)
        ids = {cache.read(number).sample_id for number in range(cache.num_samples)}
        assert len(ids) == cache.num_samples and ids == (self.ids or ids)
        self.ids = ids
        print(f"complete: {cache.num_samples} samples in {len(cache.manifest.shards)} shards, verified", flush=True)


def main() -> None:
    """Kill in every phase asked for and at random moments, then let a run complete."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 15
    kills, moments = Kills(folder), random.Random(int(os.environ.get("KILL_SEED", "0")))
    started = time.monotonic()
    kills.complete()
    duration = time.monotonic() - started
    kills._renew()
    for phase in sys.argv[3:] or (list(PHASES) if len(sys.argv) <= 2 else []):
        kills.kill(phase=phase)
    for _ in range(count):
        kills.kill(seconds=moments.uniform(0, duration))
    kills.complete()


if __name__ == "__main__":
    main()
