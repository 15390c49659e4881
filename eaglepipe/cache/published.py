"""Shards of a cache that is being made: done are those whose file and sidecar fit each other and the plan.

Bytes are hashed when the cache is sealed; before that, sizes and the sidecar's checksum of itself decide.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from eaglepipe.cache.identity import DERIVED_KEY
from eaglepipe.cache.manifest import Plan, load_document
from eaglepipe.cache.remote.shards import is_away
from eaglepipe.cache.sidecar import Sidecar, SidecarHead, load_sidecar_head
from eaglepipe.cache.writer import shard_path, sidecar_path
from eaglepipe.errors import CorruptError
from eaglepipe.files.bounds import FolderBounds
from eaglepipe.files.system_errors import explained_read_errors

AnySidecar = TypeVar("AnySidecar", Sidecar, SidecarHead)
NOT_COMPUTED = "not computed yet"


def read_published(folder: Path, plan: Plan, shard: int) -> Sidecar | str:
    """Return the sidecar of a shard that is done, or the reason why it has to be redone."""
    return _read(folder, plan, shard, FolderBounds(folder), lambda path: load_document(path, Sidecar))


def _read(
    folder: Path, plan: Plan, shard: int, bounds: FolderBounds, load: Callable[[Path], AnySidecar]
) -> AnySidecar | str:
    path, described = shard_path(folder, shard), sidecar_path(folder, shard)
    with explained_read_errors(path):
        if not described.exists():
            return "without its sidecar" if path.exists() else NOT_COMPUTED
        num_bytes = bounds.size(path)
        if num_bytes is not None and not bounds.holds(path):
            num_bytes = None
    try:
        sidecar = load(described)
    except CorruptError:
        return "its sidecar is damaged"
    if sidecar.identity != plan.identity or folder / sidecar.shard.path != path:
        return "its sidecar is that of another shard"
    if num_bytes is None:
        return sidecar if is_away(folder, sidecar.shard) else "lost, or leads out of the cache's folder"
    if num_bytes != sidecar.shard.bytes:
        return f"{num_bytes:,} bytes, published with {sidecar.shard.bytes:,}"
    return sidecar


def published_sidecars(folder: Path, plan: Plan) -> Iterator[SidecarHead]:
    """Yield the sidecars of the shards that are done, in order, without their indices."""
    return (sidecar for _, sidecar in _heads(folder, plan) if isinstance(sidecar, SidecarHead))


def unpublished_shards(folder: Path, plan: Plan) -> dict[int, str]:
    """Return the shards that are not done, each with the reason."""
    return {shard: reason for shard, reason in _heads(folder, plan) if isinstance(reason, str)}


def _heads(folder: Path, plan: Plan) -> Iterator[tuple[int, SidecarHead | str]]:
    bounds = FolderBounds(folder)
    return ((shard, _read(folder, plan, shard, bounds, load_sidecar_head)) for shard in range(plan.shards))


def finishing_command(plan: Plan) -> str:
    """Return the command that finishes an incomplete cache, in words."""
    derived = DERIVED_KEY in plan.identity_fields
    return "the command that made it again" if derived else "`eaglepipe precompute` with its recipe"


def missing_shards(folder: Path, plan: Plan) -> list[int]:
    """Return the numbers of the shards that are not done."""
    return list(unpublished_shards(folder, plan))
