"""Shards of a cache that is being made: done are those whose file and sidecar fit each other and the plan.

Bytes are hashed when the cache is sealed; before that, sizes and the sidecar's checksum of itself decide.
"""

from collections.abc import Iterator
from pathlib import Path

from eaglepipe.cache.identity import DERIVED_KEY
from eaglepipe.cache.manifest import Plan, Sidecar, load_document
from eaglepipe.cache.remote import is_away
from eaglepipe.cache.writer import shard_path, sidecar_path
from eaglepipe.errors import CorruptError
from eaglepipe.files.system_errors import explained_read_errors

NOT_COMPUTED = "not computed yet"


def read_published(folder: Path, plan: Plan, shard: int) -> Sidecar | str:
    """Return the sidecar of a shard that is done, or the reason why it has to be redone."""
    path, described = shard_path(folder, shard), sidecar_path(folder, shard)
    with explained_read_errors(path):
        if not described.exists():
            return "without its sidecar" if path.exists() else NOT_COMPUTED
        is_inside = path.is_file() and folder.resolve() in path.resolve().parents
        num_bytes = path.stat().st_size if is_inside else None
    try:
        sidecar = load_document(described, Sidecar)
    except CorruptError:
        return "its sidecar is damaged"
    if sidecar.identity != plan.identity or folder / sidecar.shard.path != path:
        return "its sidecar is that of another shard"
    if num_bytes is None:
        return sidecar if is_away(folder, sidecar.shard) else "lost, or leads out of the cache's folder"
    if num_bytes != sidecar.shard.bytes:
        return f"{num_bytes:,} bytes, published with {sidecar.shard.bytes:,}"
    return sidecar


def published_sidecars(folder: Path, plan: Plan) -> Iterator[Sidecar]:
    """Yield the sidecars of the shards that are done, in order."""
    for shard in range(plan.shards):
        sidecar = read_published(folder, plan, shard)
        if isinstance(sidecar, Sidecar):
            yield sidecar


def unpublished_shards(folder: Path, plan: Plan) -> dict[int, str]:
    """Return the shards that are not done, each with the reason."""
    read = ((shard, read_published(folder, plan, shard)) for shard in range(plan.shards))
    return {shard: reason for shard, reason in read if isinstance(reason, str)}


def finishing_command(plan: Plan) -> str:
    """Return the command that finishes an incomplete cache, in words."""
    derived = DERIVED_KEY in plan.identity_fields
    return "the command that made it again" if derived else "`eaglepipe precompute` with its recipe"


def missing_shards(folder: Path, plan: Plan) -> list[int]:
    """Return the numbers of the shards that are not done."""
    return list(unpublished_shards(folder, plan))
