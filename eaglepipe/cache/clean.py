"""Removal of what killed writers left: temporary files, stale locks, and the staging folder of a complete cache."""

from pathlib import Path

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, Plan, load_document
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.storage import STAGING_SUFFIX, WORK_FOLDER, FoundCache, scan_caches
from eaglepipe.errors import EaglepipeError
from eaglepipe.files.leftovers import is_temporary, leftover_siblings, leftovers, remove_abandoned
from eaglepipe.files.lock import FOLDER_LOCK, is_locked, remove_stale_lock
from eaglepipe.files.system_errors import explained_read_errors


def clean_cache(folder: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove the leftovers of killed writers of a cache, or of everything under a root; returns them.

    Files that a running process is still writing stay.

    Raises:
        EaglepipeError: neither a cache nor a root of caches.
    """
    with explained_read_errors(folder):
        if (folder / PLAN_NAME).exists() or (folder / MANIFEST_NAME).exists():
            staging = folder.with_name(f"{load_document(folder / PLAN_NAME, Plan).name}{STAGING_SUFFIX}")
            beside = remove_abandoned(leftover_siblings(staging), dry_run=dry_run)
            return tidy_cache(folder, dry_run=dry_run) + beside
        caches = [cache.folder for cache in scan_caches(folder) if isinstance(cache, FoundCache)]
        if not caches and not _staged(folder):
            raise EaglepipeError(f"{folder}: not a cache, nothing is removed{_advice(folder)}")
        removed = [path for cache in caches for path in tidy_cache(cache, dry_run=dry_run)]
        return removed + remove_abandoned(_staged(folder), dry_run=dry_run)


def tidy_cache(folder: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove the leftovers of killed writers inside one cache; returns them."""
    removed = remove_abandoned(leftovers(folder), dry_run=dry_run)
    work = folder / WORK_FOLDER
    if is_locked(work / FOLDER_LOCK):
        return removed
    if (folder / MANIFEST_NAME).exists() and (work.exists() or work.is_symlink()):
        load_manifest(folder)  # that of another cache does not show that this one needs no staging any more
        return removed + remove_abandoned([work], dry_run=dry_run)
    return removed + remove_stale_lock(work / FOLDER_LOCK, dry_run=dry_run)


def _staged(root: Path) -> list[Path]:
    """List the files of a root into which a corpus is tokenised before its cache has a folder, of any recipe."""
    return [path for path in sorted(root.glob(f".*{STAGING_SUFFIX}.*")) if is_temporary(path)]


def _advice(folder: Path) -> str:
    if (folder / "recipe.yaml").exists():
        return "; it is a run, which `eaglepipe train` with its recipe cleans when it is run again"
    return ""
