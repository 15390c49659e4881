"""Seconds of CPU and peak memory of the metadata of a very large cache: opening, planning, resuming, stage 1's scan.

`python -m tests.scale.metadata --samples 20000000 --shards 50000 --folder FOLDER` writes the documents of a cache whose
shards are holes of the right size, if FOLDER holds none yet, and measures each command in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eaglepipe.bench.made_cache import _fixed_files, _plan
from eaglepipe.cache.fixed_files import publish_files
from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, FileEntry, Plan, document_bytes, file_entry
from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.published import unpublished_shards
from eaglepipe.cache.samples.sidecar_index import write_index
from eaglepipe.cache.seal import PublishedShard, _manifest, _spec_document, plan_entry
from eaglepipe.cache.writer import make_sidecar
from eaglepipe.files.hashing import hash_json
from eaglepipe.recipe.family_settings import Eagle3TrainConfig
from eaglepipe.tables import text_table
from eaglepipe.training.data.batch import DataPosition
from eaglepipe.training.data.costs import blockwise_costs
from eaglepipe.training.data.order import layout_digest
from eaglepipe.training.data.packing import plan_steps
from eaglepipe.training.data.source import JoinedCaches, open_caches
from eaglepipe.training.objectives.eagle3 import Eagle3Objective
from eaglepipe.training.run.ranks.distributed import World
from eaglepipe.training.run.run_plan import RunPlan, plan_run
from tests.cache.many_shards import SHAPE, SPEC

LONGEST = 4096
_BYTES_A_TOKEN = 64
_NO_DIGEST = "0" * 32


def write_metadata(folder: Path, *, samples: int, shards: int) -> None:
    """Write plan, sidecars, manifest and index of a complete cache with empty shards."""
    fields = {"made": [samples, shards]}
    identity, per_shard = hash_json(fields), -(-samples // shards)
    fixed = publish_files(folder, _fixed_files(SHAPE, LONGEST))
    (folder / "shards").mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    published = []
    for shard in range(shards):
        numbers = range(shard * per_shard, min(samples, (shard + 1) * per_shard))
        lengths = np.clip(generator.lognormal(6.0, 0.8, len(numbers)), 16, LONGEST).astype(int).tolist()
        path = f"shards/{shard:05d}.arrow"
        file = FileEntry(path=path, bytes=sum(lengths) * _BYTES_A_TOKEN, xxh3_128=_NO_DIGEST)
        written = [(f"conversation-{n:09d}", t, t // 2, "made") for n, t in zip(numbers, lengths, strict=True)]
        sidecar = make_sidecar(file, identity, written, [])
        data = document_bytes(sidecar)
        (folder / path).with_suffix(".json").write_bytes(data)
        with (folder / path).open("wb") as stream:
            stream.truncate(file.bytes)
        listed = file_entry(f"shards/{shard:05d}.json", data)
        published.append(PublishedShard(entry=sidecar.shard, sidecar=listed, refused=Counter()))
    totals = {name: sum(getattr(shard.entry, name) for shard in published) for name in ("tokens", "supervised_tokens")}
    plan = _plan(identity, fields, [1], 1.0, shards).model_copy(update={"samples": samples, **totals})
    (folder / PLAN_NAME).write_bytes(document_bytes(plan))
    listed_files = (*fixed, plan_entry(folder, plan))
    manifest = _manifest(plan, published, listed_files, SPEC, _spec_document(folder, SPEC, LONGEST))
    write_index(folder, manifest)
    (folder / MANIFEST_NAME).write_bytes(document_bytes(manifest))


def _config(epochs: int) -> Eagle3TrainConfig:
    return Eagle3TrainConfig(batch_tokens=65_536, micro_batch_tokens=16_384, heldout_fraction=0.01, epochs=epochs)


def _planned(source: JoinedCaches, config: Eagle3TrainConfig, start: DataPosition) -> RunPlan:
    plan = plan_run(source, config, World(device=torch.device("cpu")))
    costs = blockwise_costs(partial(Eagle3Objective(config).costs, num_layers=1, training=True), source.index)
    step = next(plan_steps(plan.order, costs, limits=plan.limits, start=start))
    assert len(step.samples) > 0
    return plan


def _measured(name: str, folder: Path, epochs: int) -> dict[str, float]:
    """Run one command; returns its seconds of CPU by part, and the peak of resident memory, MB."""
    parts: dict[str, float] = {}

    def timed(part: str, work: Callable[[], object]) -> object:
        before = time.process_time()
        result = work()
        parts[part] = time.process_time() - before
        return result

    if name == "scan":
        plan = load_plan(folder)
        assert isinstance(plan, Plan)
        assert timed("scan", lambda: unpublished_shards(folder, plan)) == {}
    else:
        source = timed("open", lambda: open_caches([folder]))
        assert isinstance(source, JoinedCaches)
        if name in ("plan", "resume"):
            config, half = _config(epochs), len(source.index.num_tokens) // 2
            start = DataPosition(epoch=0, samples_done=half if name == "resume" else 0)
            timed("plan", lambda: _planned(source, config, start))
        if name == "resume":
            timed("contract", lambda: layout_digest(source.index))
    return {**parts, "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--shards", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", help="measure one of: import open plan resume scan, in this process")
    arguments = parser.parse_args()
    if arguments.only:
        measured = {} if arguments.only == "import" else _measured(arguments.only, arguments.folder, arguments.epochs)
        print(json.dumps(measured or {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    if not (arguments.folder / MANIFEST_NAME).exists():
        arguments.folder.mkdir(parents=True, exist_ok=True)
        write_metadata(arguments.folder, samples=arguments.samples, shards=arguments.shards)
    rows = []
    for name in ("import", "open", "plan", "resume", "scan"):
        command = [sys.executable, "-m", "tests.scale.metadata", "--only", name, "--folder", str(arguments.folder)]
        run = subprocess.run([*command, "--epochs", str(arguments.epochs)], capture_output=True, text=True, check=True)
        measured = json.loads(run.stdout)
        seconds = {part: value for part, value in measured.items() if part != "peak MB"}
        shown = ", ".join(f"{part} {value:.1f}" for part, value in seconds.items())
        rows.append((name, f"{sum(seconds.values()):.1f}", f"{measured['peak MB']:,.0f}", shown))
    print(text_table({"command": "left", "CPU s": "right", "peak MB": "right", "of it": "left"}, rows))


if __name__ == "__main__":
    main()
