"""Where caches live: a root that holds many, found by what the recipe declares and not by where it was made."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, Manifest, Plan, load_document
from eaglepipe.cache.publish import leftovers
from eaglepipe.cache.reader import load_manifest
from eaglepipe.config import Recipe
from eaglepipe.errors import CacheError, CorruptError, EaglepipeError

ROOT_VARIABLE = "EAGLEPIPE_CACHE_ROOT"
WORK_FOLDER = "work"
# Settings that say where things lie or how they are called, not what they are.
_NAMES = {"cache": {"root", "profile"}}


@dataclass(frozen=True, kw_only=True)
class FoundCache:
    """A folder under a root that holds a plan; `manifest` is None while it is incomplete."""

    folder: Path
    plan: Plan
    manifest: Manifest | None


def cache_root(recipe: Recipe) -> Path:
    """`cache.root`, else $EAGLEPIPE_CACHE_ROOT, else ./caches."""
    return Path(recipe.cache.root) if recipe.cache.root else default_root()


def default_root() -> Path:
    """$EAGLEPIPE_CACHE_ROOT, else ./caches."""
    return Path(os.environ.get(ROOT_VARIABLE) or "caches")


def declared_sections(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of a cache, as JSON: the key under which stage 2 finds it without the target."""
    sections = recipe.model_dump(mode="json", include={"target", "data", "vocab", "cache"})
    for section, fields in _NAMES.items():
        for field in fields:
            sections[section].pop(field)
    if recipe.cache.last_hidden == "supervised":  # plans published before there was a choice do not say so
        sections["cache"].pop("last_hidden")
    return sections


def list_caches(root: Path) -> Iterator[FoundCache]:
    """Every readable cache below a root, by name; unreadable ones are left to `cache verify`."""
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if not (folder / PLAN_NAME).is_file():
            continue
        try:
            plan = load_document(folder / PLAN_NAME, Plan)
            manifest = load_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
        except (CacheError, CorruptError):
            continue
        yield FoundCache(folder=folder, plan=plan, manifest=manifest)


def find_cache(recipe: Recipe) -> Path:
    """The complete cache that a recipe names, newest first where its data changed under the same words.

    Raises:
        CacheError: none, saying what lies there instead.
    """
    root, declared = cache_root(recipe), declared_sections(recipe)
    named = [found for found in list_caches(root) if found.plan.declared == declared and found.plan.name == recipe.name]
    complete = [found.folder for found in named if found.manifest is not None]
    if complete:
        return max(complete, key=lambda folder: (folder / MANIFEST_NAME).stat().st_mtime_ns)
    if named:
        load_manifest(named[0].folder)
    present = [found.folder.name for found in list_caches(root)]
    holds = f"it holds {', '.join(present)}" if present else "it is empty"
    raise CacheError(
        f"no cache for recipe {recipe.name!r} under {root} ({holds}). "
        "Run `eaglepipe precompute` with the same recipe first, or name folders with train.caches"
    )


@dataclass(frozen=True, kw_only=True)
class CacheShare:
    """A cache to train from, and how often each of its samples is expected in an epoch."""

    folder: Path
    weight: float = 1.0


def caches_of(recipe: Recipe) -> list[CacheShare]:
    """What `train.caches` names, else the cache that the recipe itself names."""
    named = [CacheShare(folder=Path(c.path).expanduser(), weight=c.weight) for c in recipe.train.caches or ()]
    return named or [CacheShare(folder=find_cache(recipe))]


def clean_cache(folder: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove what a stopped or finished writer left: temporary files, and the staging folder of a complete cache."""
    if not (folder / PLAN_NAME).exists():
        raise EaglepipeError(f"{folder}: not a cache, nothing is removed")
    removable = leftovers(folder)
    if (folder / MANIFEST_NAME).exists() and (folder / WORK_FOLDER).exists():
        removable.append(folder / WORK_FOLDER)
    for path in () if dry_run else removable:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return removable
