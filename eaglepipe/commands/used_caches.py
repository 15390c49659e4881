"""The caches that `train` reads, in a line each: a recipe's words may find one whose corpus has changed since.

Only notes depend on times of files; which cache is found, and whether it is valid, does not.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import typer

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.storage import CacheShare, UnreadableCache, cache_root, named_caches, scan_caches
from eaglepipe.chat.folders.listing import is_local, local_files
from eaglepipe.commands.common import is_first_process
from eaglepipe.errors import DataError, printable
from eaglepipe.recipe.tree import Recipe
from eaglepipe.stores.messages import with_urls

_PRECOMPUTE = "`eaglepipe precompute` with this recipe"


def report_caches(recipe: Recipe, shares: Sequence[CacheShare]) -> None:
    """Print `cache_lines` on standard error, once of all ranks."""
    if is_first_process():
        for line in cache_lines(recipe, shares):
            typer.echo(printable(with_urls(line)), err=True)


def cache_lines(recipe: Recipe, shares: Sequence[CacheShare]) -> Iterator[str]:
    """Yield a line for each cache, and a note if one that the recipe found may not be that of its corpus as it is."""
    for share in shares:
        manifest = load_manifest(share.folder)
        made = _time(_changed(share.folder / MANIFEST_NAME))
        yield f"cache     {share.folder}: {manifest.samples:,} samples, {manifest.identity}, complete since {made}"
    if not recipe.train.caches:
        yield from _notes(recipe, shares[0].folder)


def _notes(recipe: Recipe, folder: Path) -> Iterator[str]:
    for cache in scan_caches(cache_root(recipe)):
        if isinstance(cache, UnreadableCache) and cache.folder.name.startswith(f"{recipe.name}-"):
            yield f"note      one cannot be read: {cache.reason}"
    for found in named_caches(recipe):
        if found.manifest is None:
            yield f"note      {found.folder} has the same settings and is not complete; {_PRECOMPUTE} finishes it"
    planned = _changed(folder / PLAN_NAME)
    changed = [file for file in (*_corpus_files(recipe), *_target_files(recipe)) if _changed(file) > planned]
    if changed:
        others = f" and {len(changed) - 1:,} more files are" if len(changed) > 1 else " is"
        yield (
            f"note      {changed[0]}{others} newer than this cache ({_time(_changed(changed[0]))}): if the content has "
            f"changed, {_PRECOMPUTE} makes its cache"
        )


def _corpus_files(recipe: Recipe) -> Iterator[Path]:
    """Yield the files of the corpus that are at hand; stage 2 needs none of them."""
    for source in recipe.data.sources:
        try:
            yield from local_files(source) if is_local(source) else ()
        except (DataError, OSError):
            continue


def _target_files(recipe: Recipe) -> list[Path]:
    folder = Path(recipe.target.path).expanduser()
    try:
        if folder.is_file():  # GGUF
            return [folder]
        patterns = ("config.json", "tokenizer*", "*.safetensors", "*.gguf")
        return [file for pattern in patterns for file in folder.glob(pattern)]
    except OSError:
        return []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "a time out of range"
