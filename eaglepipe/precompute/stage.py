"""Stage 1: run the target once over the corpus and leave a complete, verified cache.

Killed anywhere and run again, it redoes only the shards that were not published.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eaglepipe.cache.clean import tidy_cache
from eaglepipe.cache.fixed_files import recorded_files
from eaglepipe.cache.manifest import MANIFEST_NAME, Manifest
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.published import NOT_COMPUTED, missing_shards, unpublished_shards
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.remote.pull import pull
from eaglepipe.cache.remote.push import make_room
from eaglepipe.cache.seal import UnsoundError, forget_unsound, seal_cache
from eaglepipe.cache.storage import staging_path
from eaglepipe.errors import CacheError, CorruptError, DraftError
from eaglepipe.files.leftovers import leftover_siblings, leftovers, remove_abandoned
from eaglepipe.precompute.answers.publish import publish_answers
from eaglepipe.precompute.claims import Worker, is_held, parse_worker
from eaglepipe.precompute.corpus import has_corpus_files
from eaglepipe.precompute.existing_caches import find_begun, find_without_target
from eaglepipe.precompute.inputs import Stage1Inputs, read_stage1_inputs
from eaglepipe.precompute.layout import CorpusLayout
from eaglepipe.precompute.layout_report import report_layout
from eaglepipe.precompute.lost import check_lost
from eaglepipe.precompute.plan import PrecomputePlan, begin_plan, preview_plan, resume_plan
from eaglepipe.precompute.runners import shard_runner
from eaglepipe.precompute.shard_run import publish_fixed_files
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import stop_on_signals
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.load import find_local_weights, resolve_folder

_SHOWN = 8
_WAIT_SECONDS = 1.0
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PrecomputeResult:
    """Outcome of a run of stage 1; `bytes` is an estimate as long as the cache is not `complete`."""

    folder: str  # empty, as `identity` is, in a dry run while the target's weights are not on this machine
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


def run_precompute(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    worker: Worker | None = None,
    seal_only: bool = False,
    wait: bool = False,
    report: Report = print,
) -> PrecomputeResult:
    """Make the cache that a recipe names, or finish it, or find it complete.

    Args:
        dry_run: stop before the target is loaded; of a target on the Hub, only config and tokenizer are downloaded.
        worker: this process's share of the shards; default: torchrun's rank, else all.
        seal_only: compute nothing, only write the manifest.
        wait: until shards of this share that another process holds are published, or given up and computed here.

    Raises:
        EaglepipeError: anything a user can mend, before the first forward if it can be known by then.
        StoppedError: SIGTERM or SIGINT; every published shard stays.
    """
    started = time.monotonic()
    remove_abandoned(leftover_siblings(staging_path(recipe)))
    if (folder := find_without_target(recipe, report)) is not None:
        manifest = _whole_manifest(folder)
        report(f"{folder}: complete; its target is not at hand, and not needed")
        tidy_cache(folder)
        return _complete(folder, manifest, started)
    inputs = read_stage1_inputs(recipe)
    needs_weights = not dry_run or recipe.data.imported is not None  # the head judges stored states
    weights_folder = resolve_folder(recipe.target) if needs_weights else find_local_weights(recipe.target)
    if weights_folder is None:
        layout = preview_plan(inputs)
        report_layout(inputs, layout, "identity and folder are known once the target's weights are downloaded", report)
        return _incomplete(layout, started)
    weights = weights_fingerprint(weights_folder)
    begun = find_begun(inputs, weights)
    if begun is not None and (begun / MANIFEST_NAME).exists():
        manifest = _whole_manifest(begun)
        report(f"{begun}: already complete")
        tidy_cache(begun)
        return _complete(begun, manifest, started)
    plan = begin_plan(inputs, weights, report) if begun is None else resume_plan(inputs, begun)
    report_layout(inputs, plan.layout, str(plan.folder), report)
    if dry_run:
        return _incomplete(plan.layout, started, plan)
    sealed, written = (
        (_sealed_only(inputs, plan, report), 0)
        if seal_only
        else _finished(inputs, plan, weights, worker or parse_worker(), report, wait=wait)
    )
    if sealed is None:
        return _incomplete(plan.layout, started, plan, shards_written=written)
    report(f"{plan.folder}: complete, {sealed.bytes_per_token:,.1f} bytes a token")
    return _complete(plan.folder, sealed, started, shards_written=written)


def _finished(
    inputs: Stage1Inputs, plan: PrecomputePlan, weights: str, worker: Worker, report: Report, *, wait: bool
) -> tuple[Manifest | None, int]:
    """Compute the missing shards and seal the cache, unless shards are left to other workers.

    Files that are found damaged at sealing are made again, once, whichever worker's they were.

    Returns:
        The manifest, None if shards are left; and the number of shards written.
    """
    written, redone = 0, False
    while True:
        pull(plan.folder)
        written += _write_missing(inputs, plan, worker, report)
        pull(plan.folder)
        if wait and _wait_for_others(plan, worker, report):
            continue
        if missing := missing_shards(plan.folder, plan.document):
            total = plan.document.shards
            report(f"left to other workers: {len(missing)} of {total} shards; whoever is last writes the manifest")
            return None, written
        try:
            return _sealed(inputs, plan, report), written
        except UnsoundError as error:
            if redone:
                raise CorruptError(f"{error}, even after they were made again; check this disk and memory") from None
            report(f"{error}; they are made again")
            redone, worker = True, Worker()  # the others may have ended
            forget_unsound(plan.folder, plan.document, error)
            if not has_corpus_files(plan.folder, plan.document.identity):
                plan = begin_plan(inputs, weights, report)


def _wait_for_others(plan: PrecomputePlan, worker: Worker, report: Report) -> bool:
    """Wait for the processes that hold shards of this share; returns whether shards are left that nobody holds."""
    said = False
    while missing := [shard for shard in missing_shards(plan.folder, plan.document) if worker.takes(shard)]:
        if not all(is_held(plan.folder, shard) for shard in missing):
            return not (plan.folder / MANIFEST_NAME).exists()
        if not said:
            report(f"waiting for another process, which holds {len(missing)} shards of this share")
            said = True
        time.sleep(_WAIT_SECONDS)
        pull(plan.folder)
    return False


def _sealed_only(inputs: Stage1Inputs, plan: PrecomputePlan, report: Report) -> Manifest:
    pull(plan.folder)
    advice = "run the same command without --seal"
    if missing := missing_shards(plan.folder, plan.document):
        raise CacheError(
            f"{plan.folder}: cannot be sealed, {len(missing)} of its shards are missing: {missing[:8]}; {advice}"
        )
    try:
        return _sealed(inputs, plan, report)
    except UnsoundError as error:
        raise CorruptError(f"{error}; {advice} to make them again") from None


def _sealed(inputs: Stage1Inputs, plan: PrecomputePlan, report: Report) -> Manifest:
    """Seal a cache, or find that another worker just did."""
    folder = plan.folder
    check_lost(inputs, plan, report)
    try:
        answers = () if inputs.recipe.data.generate is None else publish_answers(inputs, plan)
        return seal_cache(folder, plan.document, inputs.spec, max_length=inputs.recipe.data.max_length, more=answers)
    except UnsoundError:
        pull(folder)
        if not (folder / MANIFEST_NAME).exists():
            raise
        tidy_cache(folder)  # of what this worker published after the other had sealed
        return load_manifest(folder)


def _whole_manifest(folder: Path) -> Manifest:
    """Return the manifest of a cache all of whose files are there, and whose shards are its own."""
    pull(folder)
    cache = Cache.open(folder)
    cache.check_shards()
    return cache.manifest


def _write_missing(inputs: Stage1Inputs, plan: PrecomputePlan, worker: Worker, report: Report) -> int:
    if (plan.folder / MANIFEST_NAME).exists():  # another worker has just finished
        return 0
    missing = unpublished_shards(plan.folder, plan.document)
    if redone := [f"{number:05d} ({reason})" for number, reason in missing.items() if reason != NOT_COMPUTED]:
        report(f"shards to be computed again: {', '.join(redone[:_SHOWN])}{' …' if len(redone) > _SHOWN else ''}")
    has_fixed_files = recorded_files(plan.folder, "target", plan.document.identity) is not None
    if not any(map(worker.takes, missing)) and (missing or has_fixed_files):
        return 0
    remove_abandoned(leftovers(plan.folder))
    check_lost(inputs, plan, report=None)
    recipe = inputs.recipe
    with stop_on_signals() as stop:
        runner = shard_runner(inputs, plan, stop, report)
        try:  # before the forward, not after it, that stage 2 will have no draft; the cache may serve other families
            recipe.train.family.load(recipe.train.family.draft_spec)(runner.target.architectures)
        except DraftError as error:
            report(f"training   will refuse this cache: {error}")
        publish_fixed_files(inputs, runner.plan, runner.target)
        make_room(plan.folder, plan.layout.estimated_bytes // max(1, plan.document.shards))
        return runner.write_missing(worker)


def _complete(folder: Path, manifest: Manifest, started: float, *, shards_written: int = 0) -> PrecomputeResult:
    counts = manifest.model_dump(include={"identity", "samples", "tokens", "supervised_tokens", "drops"})
    return PrecomputeResult(
        **counts,
        folder=str(folder),
        complete=True,
        shards=len(manifest.shards),
        shards_written=shards_written,
        bytes=manifest.bytes,
        seconds=time.monotonic() - started,
    )


def _incomplete(
    layout: CorpusLayout, started: float, plan: PrecomputePlan | None = None, *, shards_written: int = 0
) -> PrecomputeResult:
    return PrecomputeResult(
        folder="" if plan is None else str(plan.folder),
        identity="" if plan is None else plan.document.identity,
        complete=False,
        shards=len(layout.shards),
        shards_written=shards_written,
        samples=layout.statistics.num_distinct,
        tokens=layout.statistics.total_tokens,
        supervised_tokens=layout.statistics.total_supervised,
        bytes=layout.estimated_bytes,
        drops=dict(sorted((+layout.drops.counts).items())),
        seconds=time.monotonic() - started,
    )
