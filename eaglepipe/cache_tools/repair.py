"""`cache repair`: the damaged files of a complete cache are made again, and nothing else is touched.

Each file takes its place by a rename, a shard before its sidecar and the manifest last: a reader of the cache sees the
damage or the repaired files, and a repair that was killed is finished by running it again.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eaglepipe import __version__
from eaglepipe.cache.fixed_files import file_problem, publish_files
from eaglepipe.cache.identity import DERIVED_KEY
from eaglepipe.cache.manifest import (
    DROPS_FILE,
    MANIFEST_NAME,
    PLAN_NAME,
    FileEntry,
    Manifest,
    document_bytes,
    file_entry,
)
from eaglepipe.cache.opening import load_manifest, load_plan
from eaglepipe.cache.remote.stored import is_stored
from eaglepipe.cache.samples.index_file import INDEX_FILE
from eaglepipe.cache.samples.sidecar_index import stored_index, write_index
from eaglepipe.cache.seal import PublishedShard, plan_entry, seal_cache
from eaglepipe.cache.sidecar import REFUSALS
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache_tools.damage import Damage, find_damage, shards_against_sidecars
from eaglepipe.cache_tools.rederive import command_of
from eaglepipe.cache_tools.salvage import known_items, rebuild_sidecar
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.leftovers import leftovers, remove_abandoned
from eaglepipe.files.lock import FOLDER_LOCK, write_lock
from eaglepipe.files.publish import publish_bytes
from eaglepipe.precompute.corpus import publish_list
from eaglepipe.precompute.plan import PrecomputePlan
from eaglepipe.precompute.redo import PlannedAgain, declared_recipe, planned_again
from eaglepipe.precompute.runners import shard_runner
from eaglepipe.precompute.shard_run import fixed_files
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import stop_on_signals


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """Files that were made again, each with what was wrong with it."""

    folder: str
    identity: str
    redone: dict[str, str]
    samples_computed: int
    new_manifest: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """Return a line for each file, and one for the cache."""
        lines = [f"{path}: made again ({reason})" for path, reason in self.redone.items()]
        manifest = "a new manifest" if self.new_manifest else "the manifest stays"
        done = f"{len(self.redone)} file(s) made again, {self.samples_computed:,} samples computed, {manifest}"
        if not lines and not self.new_manifest:
            done = "nothing to repair"
        return "\n".join([*lines, f"{self.folder}: sound; {done}"])


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What was published again: the files besides shards, and the reasons by path where they show only then."""

    files: dict[str, FileEntry]
    reasons: dict[str, str]
    samples: int  # that were computed
    is_sealed: bool  # with a new manifest


def repair_cache(
    folder: Path, *, recipe: Recipe | None = None, overrides: Sequence[str] = (), report: Callable[[str], None] = print
) -> RepairReport:
    """Make the damaged and lost files of a complete cache again, those that `cache verify --full` names.

    Args:
        recipe: how to make them; default: the one that the cache's plan declares.
        overrides: settings of that default which differ now, such as a moved `target.path`.

    Raises:
        CacheError: no complete cache; one made from others; or target and corpus at hand are not those of the cache.
        CorruptError: the files that were made again are not sound.
        ConfigError: another process is writing the folder.
    """
    started = time.monotonic()
    if is_stored(folder):
        raise CacheError(
            f"{folder}: is repaired on a disk: run `eaglepipe cache copy --damaged {folder} FOLDER`, then "
            f"`eaglepipe cache repair FOLDER`, then `eaglepipe cache copy FOLDER {folder}`"
        )
    if not (folder / MANIFEST_NAME).exists():
        load_manifest(folder)  # raises
    with write_lock(folder / WORK_FOLDER / FOLDER_LOCK, folder):
        remove_abandoned(leftovers(folder))
        found = find_damage(folder)
        left = _rebuild_sidecars(folder, found)
        made = _Made(files={}, reasons={}, samples=0, is_sealed=False)
        if left.needs_target:
            for path, reason in left.described().items():
                report(f"{folder / path}: {reason}")
            made = _make_again(folder, left, recipe or _declared(folder, left, overrides), report)
        new_manifest = made.is_sealed or _update_manifest(folder, left, made)
        reasons = {**found.described(), **made.reasons, **_index_again(folder)}
    if not (verified := verify_cache(folder)).ok:
        raise CorruptError(f"{folder}: still damaged after its repair: {verified.problems[0]}")
    return RepairReport(
        folder=str(folder),
        identity=load_plan(folder).identity,
        redone=reasons,
        samples_computed=made.samples,
        new_manifest=new_manifest,
        seconds=time.monotonic() - started,
    )


def _index_again(folder: Path) -> dict[str, str]:
    """Publish the index of the samples if there is none of these shards; returns the reason, if it was damaged."""
    manifest, path = load_manifest(folder), folder / INDEX_FILE
    if stored_index(path, manifest) is not None:
        return {}
    reason = {INDEX_FILE: "not the index of these shards"} if path.exists() else {}
    write_index(folder, manifest)
    return reason


def _rebuild_sidecars(folder: Path, damage: Damage) -> Damage:
    """Publish the sidecars of sound shards again; returns the rest of the damage."""
    if damage.manifest is None:
        return damage
    alone = {number: reason for number, reason in damage.sidecars.items() if number not in damage.shards}
    left = {number: why for number, why in alone.items() if not rebuild_sidecar(folder, damage.manifest, number)}
    return replace(damage, shards={**damage.shards, **left}, sidecars={})


def _declared(folder: Path, damage: Damage, overrides: Sequence[str]) -> Recipe:
    """Return the recipe that the plan declares.

    Raises:
        CacheError: the plan is damaged, or the cache was made from others.
    """
    if damage.plan is None:
        raise CacheError(
            f"{folder / PLAN_NAME}: lost or damaged, and it names target and corpus; name the recipe that made the "
            "cache with --recipe (a merged or recoded cache is made again by its own command, into a new folder)"
        )
    if DERIVED_KEY in damage.plan.identity_fields:
        raise CacheError(
            f"{folder}: made from other caches, and without them {', '.join(damage.described())} cannot be made again; "
            f"make the cache again in a new folder: `{command_of(folder, damage.plan)}`"
        )
    return declared_recipe(folder, damage.plan, overrides)


def _make_again(folder: Path, damage: Damage, recipe: Recipe, report: Callable[[str], None]) -> _Made:
    """Publish what target and corpus are needed for."""
    declared = damage.manifest or damage.plan
    identity = None if declared is None else declared.identity
    with planned_again(recipe, folder, damage.plan, identity) as again, stop_on_signals() as stop:
        inputs, plan = again.inputs, _named(again.plan, damage.manifest)
        if damage.manifest is None and damage.plan is None:
            damage = replace(damage, shards=shards_against_sidecars(folder, plan.document))
        if damage.plan is None:
            publish_bytes(folder / PLAN_NAME, document_bytes(plan.document))
        files, reasons = _publish_drops(folder, damage, again), damage.described()
        samples = 0
        if damage.manifest is None or damage.shards or damage.files.keys() - {DROPS_FILE}:
            runner = shard_runner(inputs, plan, stop, report)
            made = fixed_files(inputs, plan.layout.vocab, runner.target)
            names = made.keys() if damage.manifest is None else made.keys() & damage.files.keys()
            files |= {name: file_entry(name, made[name]) for name in names}
            reasons |= _publish_differing(folder, {name: made[name] for name in names})
            if damage.shards:
                samples = runner.write_again(
                    damage.shards, lambda shard: known_items(folder, shard, inputs.spec, plan.document.identity)
                )
        if damage.manifest is None:
            seal_cache(folder, plan.document, inputs.spec, max_length=recipe.data.max_length, fixed=files.values())
    return _Made(files=files, reasons=reasons, samples=samples, is_sealed=damage.manifest is None)


def _named(plan: PrecomputePlan, manifest: Manifest | None) -> PrecomputePlan:
    """Return the plan under the cache's name, whatever that of the recipe at hand."""
    if manifest is None:
        return plan
    return replace(plan, document=plan.document.model_copy(update={"name": manifest.name}))


def _publish_drops(folder: Path, damage: Damage, again: PlannedAgain) -> dict[str, FileEntry]:
    unlisted = damage.manifest is None and again.plan.layout.drops.counts.total() > 0
    return {DROPS_FILE: publish_list(folder, again.drops)} if unlisted or DROPS_FILE in damage.files else {}


def _publish_differing(folder: Path, made: Mapping[str, bytes]) -> dict[str, str]:
    """Publish the files that are not as they were made; returns the reasons."""
    problems = {name: file_problem(folder, file_entry(name, data)) for name, data in made.items()}
    differing = {name: problem for name, problem in problems.items() if problem is not None}
    publish_files(folder, {name: made[name] for name in differing})
    return differing


def _update_manifest(folder: Path, damage: Damage, made: _Made) -> bool:
    """Publish the manifest anew if files have other bytes than it lists; returns whether it was."""
    old, plan = damage.manifest, load_plan(folder)
    assert old is not None
    not_made = damage.files.keys() - made.files.keys()  # files that this release does not write any more
    now = {**made.files, PLAN_NAME: plan_entry(folder, plan)}
    files = tuple(now.get(entry.path, entry) for entry in old.files if entry.path not in not_made)
    is_changed = [file_problem(folder, entry) is not None for entry in old.sidecars]
    if files == old.files and not any(is_changed):
        return False
    shards = [PublishedShard.read(folder, plan, number) for number in range(plan.shards)]
    refused = sum((shard.refused for shard in shards), Counter[str]())
    entries = [shard.entry for shard in shards]
    counts = ("samples", "tokens", "supervised_tokens", "bytes")
    update = {
        "created_by": f"eaglepipe {__version__}",
        "files": files,
        "shards": tuple(entries),
        "sidecars": tuple(shard.sidecar for shard in shards),
        "drops": {**{name: old.drops[name] for name in old.drops if name not in REFUSALS}, **refused},
        **{name: sum(getattr(entry, name) for entry in entries) for name in counts},
    }
    manifest = old.model_copy(update=update)
    write_index(folder, manifest)
    publish_bytes(folder / MANIFEST_NAME, document_bytes(manifest))
    return True
