"""Faults and kills at random moments of both stages on a real S3 server: `python -m tests.stores.kills --rounds 20`.

Each round damages the network of a writer or of a reader, or kills it, and runs the same command again. At the end the
store has the bytes of a local cache, and every run the losses of local files. What is neither complete nor clean, and
every error without a message, ends the driver.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from eaglepipe.errors import EXIT_TRY_AGAIN
from eaglepipe.stores.filesystem import PATIENCE_VARIABLE
from eaglepipe.stores.local import ROOT_VARIABLE
from eaglepipe.stores.room import BYTES_VARIABLE
from eaglepipe.training.run.metrics import read_metrics
from tests.processes import Child, Done, run_eaglepipe, start_eaglepipe
from tests.stage_one import cache_of, contents
from tests.stores.s3_server import FAULTS, SECRET, Fault, Request, S3Server, environment, s3_server
from tests.tiny_project import TinyProject, make_project

BUCKET = "bucket"
_EXPECTED = {0, EXIT_TRY_AGAIN, -9}
_RATE = 0.25
_SMALL = ("cache.shard_bytes=100KiB",)
_TRAINING = ("train.batch_tokens=512", "train.max_steps=6", "train.ttt_steps=1", "train.checkpoint_every_steps=1")


def main() -> None:
    """Run the rounds and print a table of what was injected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        attack(Path(folder), rounds=arguments.rounds, seed=arguments.seed)


def attack(folder: Path, *, rounds: int, seed: int) -> None:
    """Write one cache and train one draft through `rounds` faults and kills; raises AssertionError."""
    random_of_rounds, done = random.Random(seed), Counter[str]()
    project = make_project(folder / "project")
    local = cache_of(project, folder / "local", **{"cache.shard_bytes": "100KiB"}).folder
    train(project, folder / "plain", f"cache.root={folder / 'local'}")
    sizes = {path.name: path.stat().st_size for path in local.rglob("*.arrow")}
    small = sum(p.stat().st_size for p in local.rglob("*") if p.is_file()) - sum(sizes.values())
    bound = 2 * small + int(1.4 * max(sizes.values()))  # no room for two shards
    with s3_server(BUCKET) as server, environment(_variables(server, folder / "copies", bound)):
        place, run, sizes_seen = 0, 0, [0]  # a new one where the last is finished
        server.before = lambda _: sizes_seen.append(disk_bytes(Path(os.environ[ROOT_VARIABLE])))
        for number in range(rounds):
            print(f"round {number}: {dict(done)}", file=sys.stderr, flush=True)
            is_writing = number < rounds // 2
            if number == rounds // 2:
                _finish(server, project, place)
            if number % 3 == 2:
                os.environ[ROOT_VARIABLE] = str(folder / f"copies-{number}")  # another machine
            what = _round(server, project, place, folder / f"run-{run}", random_of_rounds, is_writing=is_writing)
            done[what] += 1
            state = server.objects(BUCKET, f"caches-{place}/{local.name}/")
            check_store(state, contents(local))
            if is_writing and "manifest.json" in state and number + 1 < rounds // 2:
                place += 1
                os.environ[ROOT_VARIABLE] = str(folder / f"copies-of-{place}")
            if what.startswith("train") and what.endswith("finished"):
                assert losses(folder / f"run-{run}") == losses(folder / "plain"), "losses of no local run"
                run += 1
        _finish(server, project, place)
        os.environ[PATIENCE_VARIABLE] = "120"
        os.environ[ROOT_VARIABLE] = str(folder / "reader")
        assert stage(project, "train", place, f"train.output_dir={folder / 'last-run'}").returncode == 0
        assert server.objects(BUCKET, f"caches-{place}/{local.name}/") == contents(local)
        assert losses(folder / "last-run") == losses(folder / "plain"), "other losses than those of local files"
    for what, count in sorted(done.items()):
        print(f"{count:3d}  {what}")
    total = sum(sizes.values())
    print(f"{rounds} rounds, {len(server.injected)} faults injected; the cache and the losses are those of local files")
    peak = max(sizes_seen)
    print(f"peak of local copies {peak:,} bytes, bound {bound:,}, shards {total:,} in {len(sizes)} files")
    assert peak <= bound


def _finish(server: S3Server, project: TinyProject, place: int) -> None:
    """Run the writer once more, without faults."""
    server.choose = lambda _: None
    with environment({PATIENCE_VARIABLE: "120"}):
        done = stage(project, "precompute", place)
    assert done.returncode == 0, done.stderr


def _round(
    server: S3Server, project: TinyProject, place: int, run: Path, chance: random.Random, *, is_writing: bool
) -> str:
    """Run one stage under one kind of fault, or kill it; returns both in words."""
    kind: Fault | None = chance.choice((*FAULTS, None, None, None))
    seen, at = [0], chance.randrange(1, 60)
    child: list[Child] = []

    def choose(request: Request) -> Fault | None:
        seen[0] += 1
        if kind is None and seen[0] == at:
            child[0].send_signal(signal.SIGKILL)
            return "cut upload" if request.method == "PUT" else "reset"
        return kind if kind is not None and chance.random() < _RATE else None

    name = "precompute" if is_writing else "train"
    server.choose = choose
    done = stage(project, name, place, f"train.output_dir={run}", child=child)
    server.choose = lambda _: None
    text = done.stdout + done.stderr
    assert done.returncode in _EXPECTED, text
    assert "Traceback" not in text and SECRET not in text, text
    assert done.returncode != EXIT_TRY_AGAIN or "run the same command again" in text, text
    ending = {0: "finished", -9: "killed"}.get(done.returncode, "gave up with a message")
    return f"{name}: {kind or 'kill'}: {ending}"


def disk_bytes(folder: Path) -> int:
    """Bytes on disk, of sparse files the blocks that they have; files may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.lstat()
            total += min(status.st_size, status.st_blocks * 512) if S_ISREG(status.st_mode) else 0
    return total


def check_store(state: dict[str, bytes], whole: dict[str, bytes]) -> None:
    """Whatever is in the store has the right bytes, and a manifest is there only with all the rest."""
    assert all(whole[name] == data for name, data in state.items()), "bytes that no local cache has"
    assert "manifest.json" not in state or state.keys() == whole.keys(), "a manifest of an incomplete cache"
    sidecars = {name for name in state if name.startswith("shards/") and name.endswith(".json")}
    assert all(name.replace(".json", ".arrow") in state for name in sidecars), "a sidecar without its shard"


def stage(project: TinyProject, name: str, place: int, *more: str, child: list[Child] | None = None) -> Done:
    """Run a stage as a user would, on the store's cache."""
    settings = (*_SMALL, *_TRAINING, f"cache.root=s3://{BUCKET}/caches-{place}", *more)
    started = start_eaglepipe(name, project.recipe_file, *settings)
    if child is not None:
        child.append(started)
    return started.wait(600)


def train(project: TinyProject, run: Path, root: str) -> None:
    """Train from local files."""
    done = run_eaglepipe("train", project.recipe_file, *_SMALL, *_TRAINING, root, f"train.output_dir={run}")
    assert done.returncode == 0, done.stderr


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]


def _variables(server: S3Server, copies: Path, bound: int) -> dict[str, str]:
    mine = {ROOT_VARIABLE: str(copies), BYTES_VARIABLE: str(bound), PATIENCE_VARIABLE: "12"}
    return server.variables() | mine


if __name__ == "__main__":
    main()
