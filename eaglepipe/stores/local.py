"""The local folders of caches in object stores: which stands for which URL, and where they are.

The folder of `s3://bucket/key` is `ROOT/s3/bucket/key`, with the server's name after `s3@` if it is not Amazon's. It
holds plan, manifest, sidecars and the other small files of the cache, and those of its shards that are at hand.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from eaglepipe.errors import ConfigError, CorruptError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_json
from eaglepipe.stores.messages import name_by_url
from eaglepipe.stores.objects import ObjectStore
from eaglepipe.stores.room import BYTES_VARIABLE, Room
from eaglepipe.stores.urls import StoreUrl, parse_location

ROOT_VARIABLE = "EAGLEPIPE_LOCAL_CACHE"
MARKER = ".store.json"
_LIMIT = "limit.json"
_DEFAULT_BYTES = 64 * 2**30
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class Mirror:
    """A local folder that stands for one in a store."""

    folder: Path
    url: StoreUrl
    room: Room
    store: ObjectStore


def local_folder(text: str | Path, *, root: str | None = None, num_bytes: int | None = None) -> Path:
    """Return the local folder of a path or URL; that of a store's is made, and stays within a bound.

    Args:
        root: folder of all local copies; default: $EAGLEPIPE_LOCAL_CACHE, else ~/.cache/eaglepipe/stores.
        num_bytes: their bound; default: $EAGLEPIPE_LOCAL_CACHE_BYTES, else the one that `root` has, else 64 GiB.

    Raises:
        ConfigError: not the URL of a cache.
    """
    location = parse_location(text) if isinstance(text, str) else text
    if isinstance(location, Path):
        return location
    copies = default_root() if root is None else Path(root).expanduser()
    folder = (copies / _relative(location)).absolute()
    limit = num_bytes if num_bytes is not None else _limit_of_environment()
    limit_file = copies.absolute() / _LIMIT
    if limit is not None or not limit_file.exists():
        limit = _DEFAULT_BYTES if limit is None else limit
        if _limit(limit_file) != limit:
            publish_json(limit_file, {"bytes": limit})
    if not (folder / MARKER).exists():
        publish_json(folder / MARKER, {"url": str(location)})
    name_by_url(copies.absolute())
    return folder


def mirror_of(folder: Path) -> Mirror | None:
    """Return the store that a local folder, or the one above it, stands for; None for any other folder."""
    folder = folder.absolute()
    for marked, names in ((folder, ()), (folder.parent, (folder.name,))):
        if _is_marked(marked) and (url := _marked_url(marked)) is not None:
            return _mirror(folder, url.joined(*names) if names else url, _root_of(marked, url))
    return None


def default_root() -> Path:
    """Return $EAGLEPIPE_LOCAL_CACHE, else a folder of the user's cache."""
    if named := os.environ.get(ROOT_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eaglepipe" / "stores"


def _relative(url: StoreUrl) -> Path:
    server = ""
    if url.scheme == "s3" and (endpoint := _endpoint()):
        server = "@" + re.sub(r"[^A-Za-z0-9.-]+", "_", endpoint.partition("://")[2].rpartition("@")[2].rstrip("/"))
    return Path(f"{url.scheme}{server}", *url.path.split("/"))


def _is_marked(folder: Path) -> bool:
    try:
        return (folder / MARKER).is_file()
    except OSError:  # a name too long, or a folder that may not be searched, which whoever reads it reports
        return False


def _endpoint() -> str:
    return next(filter(None, map(os.environ.get, _ENDPOINTS)), "")


def _marked_url(folder: Path) -> StoreUrl | None:
    """Return the URL in a folder's marker if the folder is where that URL's is; a marker that was copied is none."""
    try:
        url = parse_location(str(read_json_object(folder / MARKER).get("url")))
    except (CorruptError, ConfigError):
        return None
    parts = (*url.path.split("/"),) if isinstance(url, StoreUrl) else ()
    is_there = bool(parts) and folder.parts[-len(parts) :] == parts
    return url if is_there and isinstance(url, StoreUrl) else None


def _root_of(folder: Path, url: StoreUrl) -> Path:
    return folder.parents[len(url.path.split("/"))]


def _mirror(folder: Path, url: StoreUrl, root: Path) -> Mirror:
    room = Room(root=root, bytes=_limit(root / _LIMIT) or _DEFAULT_BYTES)
    name_by_url(root)
    return Mirror(folder=folder, url=url, room=room, store=_store(url, _endpoint()))


@lru_cache(maxsize=256)
def _store(url: StoreUrl, _: str) -> ObjectStore:
    return ObjectStore(url)


def _limit(file: Path) -> int | None:
    try:
        limit = read_json_object(file).get("bytes")
    except CorruptError:
        return None
    return limit if isinstance(limit, int) and limit > 0 else None


def _limit_of_environment() -> int | None:
    text = os.environ.get(BYTES_VARIABLE)
    if not text:
        return None
    try:
        limit = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        limit = 0
    if limit <= 0:
        raise ConfigError(f"{BYTES_VARIABLE}={text!r} is not a size, such as 64GiB")
    return limit
