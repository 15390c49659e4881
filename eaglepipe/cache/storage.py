"""Storage of caches: many under one root, each found by the settings that a recipe declares."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.identity import DERIVED_KEY, check_folder_name, check_plan
from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, Manifest, Plan, load_document
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.remote.pull import pull, pull_root
from eaglepipe.errors import CacheError, EaglepipeError, ResourceError
from eaglepipe.files.json_object import diff_fields
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.recipe.tree import Recipe
from eaglepipe.stores.local import local_folder

ROOT_VARIABLE = "EAGLEPIPE_CACHE_ROOT"
WORK_FOLDER = "work"
_SHOWN, _SHOWN_CHARACTERS = 4, 400
_DEFAULT_ROOT = "caches"
STAGING_SUFFIX = ".tokens.arrow"


@dataclass(frozen=True, kw_only=True)
class FoundCache:
    """A folder under a root that holds a plan; `manifest` is None while it is incomplete."""

    folder: Path
    plan: Plan
    manifest: Manifest | None


def cache_root(recipe: Recipe) -> Path:
    """Return `cache.root`, else $EAGLEPIPE_CACHE_ROOT, else ./caches; of a URL, the local folder that stands for it."""
    return _local(recipe, recipe.cache.root) if recipe.cache.root else _local(recipe, os.environ.get(ROOT_VARIABLE))


def default_root() -> Path:
    """Return $EAGLEPIPE_CACHE_ROOT, else ./caches; of a URL, the local folder that stands for it."""
    return local_folder(os.environ.get(ROOT_VARIABLE) or _DEFAULT_ROOT)


def _local(recipe: Recipe, location: str | None) -> Path:
    cache = recipe.cache
    folder = local_folder(location or _DEFAULT_ROOT, root=cache.local_folder, num_bytes=cache.local_bytes)
    return folder.expanduser()


def staging_path(recipe: Recipe) -> Path:
    """The file that a corpus is tokenised into while its cache has no identity, and so no folder, yet."""
    return cache_root(recipe) / f"{recipe.name}{STAGING_SUFFIX}"


def declared_sections(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that a recipe declares for a cache, as JSON: the key by which stage 2 finds it."""
    excluded = {
        "root",
        "profile",
        "local_folder",
        "local_bytes",
    }  # places and names, which do not change what is stored
    if recipe.cache.last_hidden == "supervised":  # absent from plans published before there was a choice
        excluded.add("last_hidden")
    of_data = {"max_drop_fraction"} | ({"generate"} if recipe.data.generate is None else set())
    exclude = {"cache": excluded, "data": of_data, "target": {"engine", "engine_args"}}
    declared = recipe.model_dump(mode="json", include={"target", "data", "vocab", "cache"}, exclude=exclude)
    return {**declared, "target": declared["target"] | recipe.target.engine_fields}


@dataclass(frozen=True, kw_only=True)
class UnreadableCache:
    """A folder or link under a root that may be a cache, and the reason why it cannot be read."""

    folder: Path
    reason: str


def list_caches(root: Path) -> Iterator[FoundCache]:
    """Yield every readable cache below a root, by name."""
    return (cache for cache in scan_caches(root) if isinstance(cache, FoundCache))


def scan_caches(root: Path) -> Iterator[FoundCache | UnreadableCache]:
    """Yield every cache below a root, by name, also those that cannot be read: of others, they stop nobody.

    Raises:
        EaglepipeError: the root itself cannot be read.
        ResourceError: files or memory have run out, which is no fault of a cache.
    """
    pull_root(root)
    with explained_read_errors(root):
        folders = sorted(root.iterdir()) if root.is_dir() else []
    for folder in folders:
        try:
            with explained_read_errors(folder):
                found = _read_cache(folder)
        except ResourceError:
            raise
        except EaglepipeError as error:
            yield UnreadableCache(folder=folder, reason=str(error))
        else:
            if found is not None:
                yield found


def _read_cache(folder: Path) -> FoundCache | None:
    """Read plan and manifest of what may be a cache; None for any other file or folder."""
    if folder.is_symlink() and not folder.exists():
        raise CacheError(f"{folder}: a link that leads nowhere ({folder.readlink()})")
    if not _is_there(folder / PLAN_NAME) and not _is_there(folder / MANIFEST_NAME):
        return None
    plan = load_document(folder / PLAN_NAME, Plan)
    check_plan(folder, plan)
    check_folder_name(folder, plan)
    manifest = load_manifest(folder) if _is_there(folder / MANIFEST_NAME) else None
    return FoundCache(folder=folder, plan=plan, manifest=manifest)


def _is_there(path: Path) -> bool:
    """Return whether a name is taken, if only by a link that leads nowhere; raises OSError if that is not known."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def named_caches(recipe: Recipe) -> list[FoundCache]:
    """Return the caches that a recipe's words name: the complete ones, the newest first, then those that are not.

    There are several if the content of the target or of the corpus changed under the same words.
    """
    declared = declared_sections(recipe)
    found = [cache for cache in list_caches(cache_root(recipe)) if cache.plan.name == recipe.name]
    named = [cache for cache in found if cache.plan.declared == declared]
    return sorted(named, key=lambda cache: _completed_ns(cache.folder), reverse=True)


def _completed_ns(folder: Path) -> int:
    manifest = folder / MANIFEST_NAME
    return manifest.stat().st_mtime_ns if manifest.exists() else -1


def find_cache(recipe: Recipe, *, identity: str | None = None) -> Path:
    """Return the complete cache that a recipe names: if there are several, that of `identity`, else the newest.

    Raises:
        CacheError: there is none; lists the caches that are there.
    """
    for cache in sorted(
        named_caches(recipe), key=lambda cache: (cache.manifest is None, cache.plan.identity != identity)
    ):
        pull(cache.folder)
        load_manifest(cache.folder)
        return cache.folder
    root = cache_root(recipe)
    present = list(list_caches(root))
    raise CacheError(
        f"no cache for recipe {recipe.name!r} under {root} ({_describe_others(recipe, root, present)}). "
        "Run `eaglepipe precompute` with the same recipe first, or name folders with train.caches"
    )


def _describe_others(recipe: Recipe, root: Path, present: list[FoundCache]) -> str:
    """The nearest one: an unreadable cache of this name, one that differs in a few settings, or any others."""
    for cache in scan_caches(root):
        if isinstance(cache, UnreadableCache) and cache.folder.name.startswith(f"{recipe.name}-"):
            return f"one cannot be read: {cache.reason}"
    declared = declared_sections(recipe)
    others = [
        (list(diff_fields(found.plan.declared, declared)), found.folder.name)
        for found in present
        if found.plan.name == recipe.name and DERIVED_KEY not in found.plan.identity_fields
    ]
    if not others:
        names = ", ".join(found.folder.name for found in present)
        return f"it holds {names}" if names else "it is empty"
    differences, nearest = min(others, key=lambda other: len(other[0]))
    more = [f"and {len(differences) - _SHOWN} more"] * (len(differences) > _SHOWN)
    shown = [_cut(difference) for difference in differences[:_SHOWN]]
    return f"{nearest} differs from the recipe in {'; '.join([*shown, *more])}"


def _cut(text: str) -> str:
    """Return a text with the middle left out if it is long, such as a list of sources and what it became."""
    half = _SHOWN_CHARACTERS // 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]} … {text[-half:]}"


@dataclass(frozen=True, kw_only=True)
class CacheShare:
    """A cache to train from, and how often each of its samples is expected in an epoch."""

    folder: Path
    weight: float = 1.0


def caches_of(recipe: Recipe, *, identity: str | None = None) -> list[CacheShare]:
    """Return the caches that `train.caches` names, else the one that the recipe itself names (see `find_cache`)."""
    named = [CacheShare(folder=_local(recipe, c.path), weight=c.weight) for c in recipe.train.caches or ()]
    for share in named:
        pull(share.folder)
    return named or [CacheShare(folder=find_cache(recipe, identity=identity))]
