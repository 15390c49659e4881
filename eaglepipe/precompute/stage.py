"""Stage 1: run the target once over the corpus and leave a complete, verified cache.

Killed anywhere and run again, it redoes only the shards that were not published.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, Manifest
from eaglepipe.cache.reader import load_manifest, missing_shards
from eaglepipe.cache.seal import seal_cache
from eaglepipe.cache.storage import cache_root, find_cache, list_caches
from eaglepipe.devices import resolve_device
from eaglepipe.eagle.registry import resolve_eagle1_draft_spec, resolve_eagle3_draft_spec
from eaglepipe.errors import CacheError, ConfigError, DraftError, EaglepipeError
from eaglepipe.precompute.inputs import Inputs, read_inputs
from eaglepipe.precompute.plan import Work, make_work, nearest_cache
from eaglepipe.precompute.shard_run import ShardRun, Worker, publish_fixed_files
from eaglepipe.progress import format_seconds
from eaglepipe.recipe.load import Recipe
from eaglepipe.signals import stop_on_signals
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.speed import forward_seconds

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PrecomputeResult:
    """What a run of stage 1 left; `bytes` is the estimate as long as the cache is not `complete`."""

    folder: str
    identity: str
    complete: bool
    shards: int
    shards_written: int
    samples: int
    tokens: int
    supervised_tokens: int
    bytes: int
    drops: dict[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_worker(text: str | None) -> Worker:
    """`i/n`, else what torchrun put into the environment, else the only worker there is."""
    if text is None:
        return Worker(rank=int(os.environ.get("RANK", "0")), count=int(os.environ.get("WORLD_SIZE", "1")))
    rank, _, count = text.partition("/")
    if not (rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise ConfigError(f"--workers {text!r}: expected i/n with 0 <= i < n, such as 0/4")
    return Worker(rank=int(rank), count=int(count))


def run_precompute(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    worker: Worker | None = None,
    seal_only: bool = False,
    report: Report = print,
) -> PrecomputeResult:
    """Make the cache that a recipe names, or finish it, or find it complete.

    Args:
        dry_run: stop before the target is loaded.
        worker: this process's share of the shards; default: what torchrun says, else all.
        seal_only: compute nothing, only write the manifest.

    Raises:
        EaglepipeError: anything a user can mend, before the first forward where it can be known by then.
        StoppedError: SIGTERM or SIGINT; every published shard stays.
    """
    started = time.monotonic()
    if (folder := _complete_without_target(recipe)) is not None:
        report(f"{folder}: complete; its target is not at hand, and not needed")
        return _complete(folder, load_manifest(folder), started)
    inputs = read_inputs(recipe)
    if (inputs.folder / MANIFEST_NAME).exists():
        report(f"{inputs.folder}: already complete")
        return _complete(inputs.folder, load_manifest(inputs.folder), started)
    if not (inputs.folder / PLAN_NAME).exists() and (note := nearest_cache(inputs)):
        report(note)
    work = make_work(inputs)
    _report_plan(inputs, work, report)
    if dry_run:
        return _incomplete(work, started)
    written = 0 if seal_only else _write_missing(inputs, work, worker or parse_worker(None), report)
    left = missing_shards(work.folder, work.plan)
    if left and seal_only:
        raise CacheError(f"{work.folder}: cannot be sealed, {len(left)} of its shards are missing: {left[:8]}")
    if left:
        report(f"left to other workers: {len(left)} of {work.plan.shards} shards; whoever is last writes the manifest")
        return _incomplete(work, started, shards_written=written)
    manifest = seal_cache(work.folder, work.plan, inputs.spec, max_length=recipe.data.max_length)
    report(f"{work.folder}: complete, {manifest.bytes_per_token:,.1f} bytes a token")
    return _complete(work.folder, manifest, started, shards_written=written)


def find_by_content(recipe: Recipe) -> Path | None:
    """The complete cache that a recipe names by what its files hold, whatever their paths; None where there is none.

    A cache made on another machine, or before a folder moved, was made with other words. Its identity is computed as
    stage 1 does, from the target and the corpus at hand, and only where a complete cache of this name is.
    """
    named = (found for found in list_caches(cache_root(recipe)) if found.plan.name == recipe.name)
    if all(found.manifest is None for found in named):
        return None
    try:
        folder = read_inputs(recipe).folder
    except EaglepipeError:
        return None
    return folder if (folder / MANIFEST_NAME).exists() else None


def _complete_without_target(recipe: Recipe) -> Path | None:
    """A cache that the same words made earlier, when their target has gone since."""
    if Path(recipe.target.path).expanduser().exists():
        return None
    try:
        return find_cache(recipe)
    except CacheError:
        return None


def _report_plan(inputs: Inputs, work: Work, report: Report) -> None:
    plan, vocab = work.plan, work.vocab
    drops = ", ".join(f"{count} {reason}" for reason, count in plan.drops.items()) or "none"
    columns = ", ".join(f"{name} {size:,.1f}" for name, size in work.cost.by_column.items() if size >= 1)
    forward = format_seconds(forward_seconds(inputs.recipe, plan.tokens))
    report(f"cache     {work.folder}")
    report(f"corpus    {plan.samples:,} samples, {plan.tokens:,} tokens, {plan.supervised_tokens:,} of them supervised")
    report(f"dropped   {drops}")
    report(f"vocab     {vocab.size:,} of {vocab.target_size:,} tokens, which are {vocab.coverage():.2%} of the answers")
    most = "at most " if inputs.spec.supervision == "sparse" else ""
    report(f"a token   {most}{work.cost.total:,.1f} bytes: {columns}")
    report(
        f"estimate  {work.estimated_bytes / 1e9:,.3g} GB in {plan.shards} shards, {forward} of forward on one device"
    )


def _write_missing(inputs: Inputs, work: Work, worker: Worker, report: Report) -> int:
    if not any(worker.takes(shard) for shard in missing_shards(work.folder, work.plan)):
        return 0
    with stop_on_signals() as stop:
        target = load_target(inputs.recipe.target, _device(inputs.recipe.precompute.device))
        _report_missing_draft(target.architectures, inputs.recipe.train.objective, report)
        model = HFEagle3TargetModel(target, inputs.spec.aux_layer_ids)
        publish_fixed_files(inputs, work, model)
        return ShardRun(inputs, work, model, stop).write_missing(worker)


def _report_missing_draft(architectures: list[str], objective: str, report: Report) -> None:
    """Say before the forward, not after it, that stage 2 will have no draft; the cache may serve others."""
    resolve = resolve_eagle1_draft_spec if objective in ("eagle1", "eagle2") else resolve_eagle3_draft_spec
    try:
        resolve(architectures)
    except DraftError as error:
        report(f"training   will refuse this cache: {error}")


def _device(wanted: str) -> str:
    """Under torchrun each process takes the GPU of its own local rank."""
    local_rank = os.environ.get("LOCAL_RANK")
    return str(resolve_device(wanted, None if local_rank is None else int(local_rank)))


def _complete(folder: Path, manifest: Manifest, started: float, *, shards_written: int = 0) -> PrecomputeResult:
    return PrecomputeResult(
        folder=str(folder),
        identity=manifest.identity,
        complete=True,
        shards=len(manifest.shards),
        shards_written=shards_written,
        samples=manifest.samples,
        tokens=manifest.tokens,
        supervised_tokens=manifest.supervised_tokens,
        bytes=manifest.bytes,
        drops=dict(manifest.drops),
        seconds=time.monotonic() - started,
    )


def _incomplete(work: Work, started: float, *, shards_written: int = 0) -> PrecomputeResult:
    return PrecomputeResult(
        folder=str(work.folder),
        identity=work.plan.identity,
        complete=False,
        shards=work.plan.shards,
        shards_written=shards_written,
        samples=work.plan.samples,
        tokens=work.plan.tokens,
        supervised_tokens=work.plan.supervised_tokens,
        bytes=work.estimated_bytes,
        drops=dict(work.plan.drops),
        seconds=time.monotonic() - started,
    )
