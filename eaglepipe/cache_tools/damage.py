"""Damage of a complete cache: files that are not as its manifest lists them.

Without a readable manifest, the plan and the shards' sidecars decide, each by its checksum of itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from eaglepipe.cache.fixed_files import file_problem, file_problems
from eaglepipe.cache.identity import check_manifest, check_plan
from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, SHARDS_FOLDER, Manifest, Plan, load_document
from eaglepipe.cache.opening import load_manifest, load_plan, read_manifest
from eaglepipe.cache.seal import UnsoundError, checked_shards
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.writer import sidecar_path
from eaglepipe.cache_tools.salvage import sound_samples
from eaglepipe.errors import CacheError, CorruptError

Document = TypeVar("Document", Manifest, Plan)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Damaged and lost files, with the reasons; a plan or manifest that is None is one of them."""

    manifest: Manifest | None
    plan: Plan | None
    shards: dict[int, str]
    sidecars: dict[int, str]
    files: dict[str, str]  # besides plan and manifest

    @property
    def needs_target(self) -> bool:
        """Whether something has to be made again from target and corpus."""
        return bool(self.shards or self.files or self.manifest is None or self.plan is None)

    def described(self) -> dict[str, str]:
        """Return the reasons by path."""
        documents = {MANIFEST_NAME: self.manifest, PLAN_NAME: self.plan}
        return {
            **{name: "lost or damaged" for name, document in documents.items() if document is None},
            **self.files,
            **{f"{SHARDS_FOLDER}/{number:05d}.arrow": reason for number, reason in self.shards.items()},
            **{f"{SHARDS_FOLDER}/{number:05d}.json": reason for number, reason in self.sidecars.items()},
        }


def find_damage(folder: Path) -> Damage:
    """Compare every byte of a complete cache.

    Raises:
        CacheError: no cache, an incomplete one, or files of two caches.
    """
    if not (folder / MANIFEST_NAME).exists():
        load_manifest(folder)  # raises
    manifest, plan = _readable_documents(folder)
    if manifest is None:
        shards = {} if plan is None else shards_against_sidecars(folder, plan)
        return Damage(manifest=None, plan=plan, shards=shards, sidecars={}, files={})
    shards, sidecars = _shards_against_manifest(folder, manifest)
    files = {
        entry.path: problem
        for entry in manifest.files
        if entry.path != PLAN_NAME and (problem := file_problem(folder, entry)) is not None
    }
    return Damage(manifest=manifest, plan=plan, shards=shards, sidecars=sidecars, files=files)


def shards_against_sidecars(folder: Path, plan: Plan) -> dict[int, str]:
    """Return the shards whose bytes or sidecars are not as published."""
    try:
        checked_shards(folder, plan)
    except UnsoundError as error:
        return {int(PurePosixPath(path).stem): reason for path, reason in error.problems.items()}
    return {}


def _shards_against_manifest(folder: Path, manifest: Manifest) -> tuple[dict[int, str], dict[int, str]]:
    shards, sidecars = {}, {}
    for number, problem in enumerate(file_problems(folder, manifest.shards)):
        if problem is not None and _is_repaired(folder, manifest, number):
            continue
        problem_of_shard = _content_problem(folder, manifest, number) if problem is None else problem
        if problem_of_shard is not None:
            shards[number] = problem_of_shard
        if (problem_of_sidecar := file_problem(folder, manifest.sidecars[number])) is not None:
            sidecars[number] = problem_of_sidecar
    return shards, sidecars


def _content_problem(folder: Path, manifest: Manifest, shard: int) -> str | None:
    samples = manifest.shards[shard].samples
    sound = sum(1 for _ in sound_samples(folder, shard, manifest.shard_spec(), manifest.identity))
    return None if sound == samples else f"{samples - sound} of its {samples} samples hold what no target gives"


def _is_repaired(folder: Path, manifest: Manifest, shard: int) -> bool:
    """Whether a repair that was stopped before its manifest has published this shard and its sidecar."""
    entry = manifest.shards[shard]
    try:
        sidecar = load_document(sidecar_path(folder, shard), Sidecar)
    except (CacheError, CorruptError):
        return False
    counts = {"samples", "tokens", "supervised_tokens"}
    return (
        sidecar.identity == manifest.identity
        and sidecar.shard.path == entry.path
        and sidecar.shard.model_dump(include=counts) == entry.model_dump(include=counts)
        and file_problem(folder, sidecar.shard) is None
    )


def _readable_documents(folder: Path) -> tuple[Manifest | None, Plan | None]:
    manifest = _readable(partial(read_manifest, folder))
    plan = _readable(partial(load_plan, folder)) if (folder / PLAN_NAME).exists() else None
    if plan is not None and _is_changed(folder, plan):
        plan = None
    if manifest is not None and plan is not None:
        check_manifest(folder, plan, manifest)
    return manifest, plan


def _readable(load: Callable[[], Document]) -> Document | None:
    try:
        return load()
    except CorruptError:
        return None


def _is_changed(folder: Path, plan: Plan) -> bool:
    try:
        check_plan(folder, plan)
    except CorruptError:
        return True
    return False
