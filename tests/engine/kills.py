"""Stage 1 through vLLM, killed at random moments of its work, and run again until it completes.

`python -m tests.engine.kills FOLDER [KILLS] [PHASE ...]`: each kill draws what it hits, as often as `DRAWN` says or in
turn from the phases given: the computing, at a random time after the engine's first states; a shard being published, at
a random one; or the end. Each `RERUN_AFTER` kills a run has to complete. After each kill it tells what a rerun has to
redo: the samples that shards without a sidecar held, which may be no more than those of one shard.
"""

import itertools
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
    "shard": ("shards/*.arrow", "before"),  # all written, not yet published
    "sidecar": ("shards/*.arrow", "after"),  # the shard is there, its sidecar not
    "counted": ("shards/*.json", "after"),  # published whole, before the feed hears of it
    "manifest": ("manifest.json", "before"),
    "sealed": ("manifest.json", "after"),  # the cache is complete, its work folder still there
}
COMPUTING = "computing"
DRAWN = {COMPUTING: 14, "shard": 2, "sidecar": 1, "counted": 1, "manifest": 1, "sealed": 1}
"""What a kill hits, and how often of 20."""
RERUN_AFTER = 4
_SHARE = 0.2
"""A kill in the computing comes within this share of the time that all of it takes, so that several fit in a cache."""
_SETTINGS = {"cache.shard_bytes": "400KiB", "precompute.batch_tokens": 512}
_START_SECONDS = 240.0
ROOT = Path(__file__).parents[2]


def plant(phase: str, number: int = 1) -> None:
    """Kill this process, and if it is an engine's the one that started it, when it publishes the phase's n-th file."""
    name, moment = PHASES[phase]
    move, files = publish._move, itertools.count(1)

    def killing(source: Path, target: Path) -> None:
        hit = target.match(name) and next(files) == number
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

    def __init__(self, folder: Path, *, seed: int = 0) -> None:
        self.root, self.site = folder / "caches", folder / "site"
        self.site.mkdir(parents=True)
        code = "import os\nif 'KILL_AT' in os.environ:\n    from tests.engine import kills\n"
        code += "    kills.plant(os.environ['KILL_AT'], int(os.environ['KILL_NUMBER']))\n"
        (self.site / "sitecustomize.py").write_text(code)
        self.project: TinyProject = make_served_project(folder / "project", rows=400)
        self.settings = {**many_shards(self.root), **_SETTINGS}
        self.moments = random.Random(seed)
        self.log = folder / "log.txt"
        self.ids: set[str] = set()
        self.seconds = 0.0  # of computing all
        self.most = 0  # samples of a shard
        self.renew()

    def renew(self) -> None:
        """Begin a cache of many shards anew."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.cache = plan_in_an_earlier_order(self.project.recipe(**self.settings), 512)

    def published(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.cache / "shards").glob("*.json")}

    def open_shards(self) -> set[Path]:
        return set((self.cache / "shards").glob(".*.arrow.*"))

    def start(self, **variables: str) -> subprocess.Popen[bytes]:
        overrides = [f"{key}={value}" for key, value in self.settings.items()]
        command = [sys.executable, "-m", "eaglepipe", "precompute", str(self.project.recipe_file), *overrides]
        environment: dict[str, Any] = {**os.environ, "PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}", **variables}
        with self.log.open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait_for_states(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the run has written its first sample, or ends without one."""
        stale, deadline = self.open_shards(), time.monotonic() + _START_SECONDS
        while self.open_shards() <= stale and process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.002)

    def kill(self, phase: str) -> bool:
        """Kill a run, and check what it leaves: a sound cache in the making, at most one shard of it to be redone.

        Returns whether it was killed before it ended.
        """
        before = self.published()
        if phase == COMPUTING:
            process, moment = self.start(), self.moments.uniform(0, _SHARE * self.seconds)
            self.wait_for_states(process)
            try:
                process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                process.kill()
            what = f"{moment:.2f} s into the computing"
        else:
            number = self.moments.randint(1, 8) if phase in ("shard", "sidecar", "counted") else 1
            process = self.start(KILL_AT=phase, KILL_NUMBER=str(number))
            what = f"at {phase} {number}"
        code = process.wait()
        assert code in (0, -signal.SIGKILL), self.log.read_text()[-2000:]
        time.sleep(1.0)  # the engine ends with the process that started it
        after, open_shards = self.published(), self.open_shards()
        lone = [path for path in (self.cache / "shards").glob("*.arrow") if path.with_suffix(".json").name not in after]
        redone = [num_samples(path) for path in (*open_shards, *lone)]
        assert {name: after.get(name) for name in before} == before, "a published shard was written again"
        print(
            f"{what}: {'killed' if code else 'ended by itself'}; {len(before)} -> {len(after)} shards published, "
            f"{len(open_shards)} open, {len(lone)} without a sidecar, samples to redo: {redone or 0}",
            flush=True,
        )
        assert sum(redone) <= self.most, f"more than the {self.most} samples of a shard are to be redone"
        if code == 0 or phase in ("manifest", "sealed"):
            self.complete()
            self.renew()
        return code != 0

    def complete(self) -> None:
        """Run to the end, and check that the cache is complete, verified, and holds the same samples as ever."""
        before, process = self.published(), self.start()
        self.wait_for_states(process)
        begun = time.monotonic()
        assert process.wait() == 0, self.log.read_text()[-2000:]
        self.seconds = self.seconds or time.monotonic() - begun
        assert {name: self.published().get(name) for name in before} == before
        assert verify_cache(self.cache).ok
        cache = Cache.open(self.cache)
        ids = {cache.read(number).sample_id for number in range(cache.num_samples)}
        assert len(ids) == cache.num_samples and ids == (self.ids or ids)
        self.ids, self.most = ids, max(shard.samples for shard in cache.manifest.shards)
        print(
            f"complete: {cache.num_samples} samples in {len(cache.manifest.shards)} shards of {self.most} at most, "
            f"verified; {len(before)} shards were kept",
            flush=True,
        )


def main() -> None:
    """Kill as often as asked for, and let every few of the runs complete, and the last one."""
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    kills = Kills(folder, seed=int(os.environ.get("KILL_SEED", "0")))
    phases = list(itertools.chain.from_iterable([name] * often for name, often in DRAWN.items()))
    kills.moments.shuffle(phases)
    kills.complete()
    print(f"computing takes {kills.seconds:.1f} s", flush=True)
    kills.renew()
    turns, killed = itertools.cycle(sys.argv[3:] or phases), 0
    while killed < count:
        if not kills.kill(next(turns)):
            continue
        killed += 1
        if killed % RERUN_AFTER == 0:
            kills.complete()
            kills.renew()
    kills.complete()


if __name__ == "__main__":
    main()
