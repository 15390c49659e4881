"""Training from a real S3 server: the losses of local files, within a bound, begun before all shards are there."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.remote.pull import opened_location
from eaglepipe.cache.storage import CacheShare
from eaglepipe.cache_tools.copy import copy_cache
from eaglepipe.evaluation.evaluate import evaluate_run
from eaglepipe.evaluation.options import EvalOptions
from eaglepipe.recipe.tree import Recipe
from eaglepipe.stores.local import ROOT_VARIABLE
from eaglepipe.stores.room import BYTES_VARIABLE
from eaglepipe.train import run_training
from eaglepipe.training.data.order import step_ends
from eaglepipe.training.data.source import open_caches
from eaglepipe.training.run.metrics import read_metrics
from eaglepipe.training.run.ranks.distributed import join_world
from eaglepipe.training.run.run_plan import plan_run
from tests.stage_one import cache_of
from tests.stores.s3_server import Request, environment, s3_server
from tests.tiny_project import TinyProject

SETTINGS = {
    "train.batch_tokens": 512,
    "train.max_steps": 4,
    "train.heldout_fraction": 0,
    "train.prefetch_batches": 1,
    "train.ttt_steps": 1,
}


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "step"]


def shard_sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*.arrow")}


def disk_bytes(folder: Path) -> int:
    """Bytes on disk, of sparse files the blocks that they have."""
    return sum(min(p.stat().st_size, p.stat().st_blocks * 512) for p in folder.rglob("*") if p.is_file())


def first_shards(recipe: Recipe, cache: Cache) -> Iterator[str]:
    """The files that hold the samples of the first step."""
    source = open_caches([cache.folder])
    with join_world("cpu") as world:
        plan = plan_run(source, recipe.train, world)
    order = plan.order.epoch(0)
    ends = np.cumsum([entry.samples for entry in cache.manifest.shards])
    for sample in order[: step_ends(source.index.num_tokens[order], recipe.train.batch_tokens)[0]]:
        yield Path(cache.manifest.shards[int(np.searchsorted(ends, sample, side="right"))].path).name


def test_a_run_from_a_store_begins_early_stays_in_its_bound_and_has_the_losses_of_local_files(
    project: TinyProject, tmp_path: Path
) -> None:
    local = cache_of(project, tmp_path / "local", **{"cache.shard_bytes": "100KiB"})
    recipe = project.recipe(**SETTINGS, **{"train.output_dir": tmp_path / "run"})
    run_training(recipe, [CacheShare(folder=local.folder)])
    run = tmp_path / "stored-run"
    recipe = project.recipe(**SETTINGS, **{"train.output_dir": run})

    sizes = shard_sizes(local.folder)
    small = sum(p.stat().st_size for p in local.folder.rglob("*") if p.is_file()) - sum(sizes.values())
    bound = small + sum(sizes.values()) // 2
    first, others = set(first_shards(recipe, local)), set(sizes)
    copies, peak, events = tmp_path / "copies", [0], list[str]()

    def watch(request: Request) -> None:
        """Measure the disk at each request; what the first step does not read comes once that step is logged."""
        peak[0] = max(peak[0], disk_bytes(copies))
        if request.is_shard and Path(request.path).name not in first:
            deadline = time.monotonic() + 15
            while not losses(run) and time.monotonic() < deadline:
                time.sleep(0.02)
            events.append("a shard after the first step" if losses(run) else "a shard too late")

    with s3_server("bucket") as server, environment(server.variables() | {ROOT_VARIABLE: str(tmp_path / "writer")}):
        copy_cache(local.folder, opened_location("s3://bucket/cache"))
        server.before = watch
        with environment({ROOT_VARIABLE: str(copies), BYTES_VARIABLE: str(bound)}):
            run_training(recipe, [CacheShare(folder=opened_location("s3://bucket/cache"))])
    assert losses(run) == losses(tmp_path / "run")
    assert first < others and set(events) == {"a shard after the first step"}
    assert 0 < peak[0] <= bound
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["kind"] == "store"]
    assert len(rows) == 4 and sum(row["fetched_bytes"] for row in rows) > 0


def test_a_run_is_measured_from_a_store_as_from_local_files(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    run, copies = tmp_path / "run", tmp_path / "copies"
    options = EvalOptions(num_samples=2, num_prompts=2, max_new_tokens=8, baselines=False)
    settings = {"train.max_steps": 1, "train.ttt_steps": 1, "train.output_dir": run}
    recipe = project.recipe(**settings, **{"train.caches": "[s3://bucket/measured]"})
    with s3_server("bucket") as server, environment(server.variables() | {ROOT_VARIABLE: str(tmp_path / "writer")}):
        copy_cache(sealed_cache, opened_location("s3://bucket/measured"))
        run_training(recipe, [CacheShare(folder=opened_location("s3://bucket/measured"))])
        with environment({ROOT_VARIABLE: str(copies)}):
            as_trained = evaluate_run(run, options)
            by_url = evaluate_run(run, replace(options, caches=(opened_location("s3://bucket/measured"),)))
            fetched = [request for _, request in server.requests if request.is_shard and request.method == "GET"]
    by_folder = evaluate_run(run, replace(options, caches=(sealed_cache,)))
    assert as_trained.heldout == by_url.heldout == by_folder.heldout
    assert fetched and not [path for path in copies.rglob("*") if ".tmp" in path.name]
