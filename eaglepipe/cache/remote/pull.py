"""Making a local folder agree with its store: plans, manifests, sidecars and the other small files."""

import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, SHARDS_FOLDER, FileEntry, Manifest, load_document
from eaglepipe.cache.samples.index_file import INDEX_FILE, index_key, is_bound
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.publish import publish_bytes, published_file
from eaglepipe.stores.local import Mirror, local_folder, mirror_of
from eaglepipe.stores.objects import Listed
from eaglepipe.stores.transfers import each

_FRESH_SECONDS = 2.0
_refreshed: dict[Path, float] = {}  # when this process last listed a root


def opened_location(text: str | Path) -> Path:
    """Return the local folder of a cache or a root that a command names, with the small files that its store has now.

    Raises:
        ConfigError: not the URL of a cache, or a package is missing.
        CacheError, UnreachableError: the store refuses, or does not answer.
    """
    folder = local_folder(text)
    pull(folder)
    return folder


def pull(folder: Path) -> None:
    """Make the small files of a local folder those of its store, if it stands for one.

    Raises:
        CacheError, UnreachableError: the store refuses, or does not answer.
    """
    if (mirror := mirror_of(folder)) is None:
        return
    started = time.time()
    listed = mirror.store.listing()
    for name in (PLAN_NAME, MANIFEST_NAME):
        pull_document(mirror, name)
    try:
        manifest = load_document(folder / MANIFEST_NAME, Manifest)
    except (CacheError, CorruptError):  # which whoever opens the cache reports
        _pull_sidecars(mirror, listed, started)
        return
    _pull_files(mirror, [*manifest.files, *manifest.sidecars], listed)
    _pull_index(mirror, listed, index_key(manifest.identity, [entry.xxh3_128 for entry in manifest.sidecars]))
    for shard in manifest.shards:
        if (stored := listed.get(shard.path)) is None or stored.num_bytes != shard.bytes:
            (folder / shard.path).with_suffix(".json").unlink(missing_ok=True)


def pull_root(root: Path) -> None:
    """Fetch plans and manifests of all caches below a root that is in a store, and sidecars of incomplete ones."""
    mirror = mirror_of(root)
    if mirror is None or time.monotonic() - _refreshed.get(root, -_FRESH_SECONDS) < _FRESH_SECONDS:
        return
    names = mirror.store.folders()
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and folder.name not in names:
            for document in (PLAN_NAME, MANIFEST_NAME):
                (folder / document).unlink(missing_ok=True)

    def pull_cache(name: str) -> None:
        below, started = mirror_of(root / name), time.time()
        assert below is not None
        for document in (PLAN_NAME, MANIFEST_NAME):
            pull_document(below, document)
        if (root / name / PLAN_NAME).exists() and not (root / name / MANIFEST_NAME).exists():
            _pull_sidecars(below, below.store.listing(), started)

    each(pull_cache, names)
    _refreshed[root] = time.monotonic()


def pull_document(mirror: Mirror, name: str) -> None:
    path = mirror.folder / name
    data = mirror.store.read(name)
    if data is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != data:
        publish_bytes(path, data)


def _pull_sidecars(mirror: Mirror, listed: dict[str, Listed], started: float) -> None:
    """Make the local sidecars those of shards that the store has with the size that they give.

    Those that another process has published since the listing was asked for stay.
    """
    folder = mirror.folder / SHARDS_FOLDER
    names = [name for name in listed if name.startswith(f"{SHARDS_FOLDER}/") and name.endswith(".json")]
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            if f"{SHARDS_FOLDER}/{path.name}" not in names and path.stat().st_mtime < started:
                path.unlink()

    def pull_sidecar(name: str) -> None:
        path = mirror.folder / name
        data = path.read_bytes() if path.exists() else None
        if data is None or not listed[name].may_be(data):
            data = mirror.store.read(name)
            if data is None:
                path.unlink(missing_ok=True)
                return
            publish_bytes(path, data, tidy=False)
        with suppress(CacheError, CorruptError):  # which whoever reads the shard reports
            shard = load_document(path, Sidecar).shard
            stored = listed.get(PurePosixPath(name).with_suffix(".arrow").as_posix())
            if stored is None or stored.num_bytes != shard.bytes:
                path.unlink(missing_ok=True)

    each(pull_sidecar, names)


def _pull_files(mirror: Mirror, entries: list[FileEntry], listed: dict[str, Listed]) -> None:
    """Fetch the small files that are not at hand with their digests; damage in the store stays visible."""

    def pull_file(entry: FileEntry) -> None:
        path = mirror.folder / entry.path
        if path.is_file() and path.stat().st_size == entry.bytes and hash_file(path) == entry.xxh3_128:
            return
        if entry.path not in listed:
            path.unlink(missing_ok=True)
            return
        with published_file(path, tidy=False) as pending:
            mirror.store.copy(entry.path, listed[entry.path].num_bytes, pending.stream.fileno())

    each(pull_file, entries)


def _pull_index(mirror: Mirror, listed: dict[str, Listed], key: str) -> None:
    """Fetch the index of the samples if it is not at hand; one of other sidecars is never read."""
    path = mirror.folder / INDEX_FILE
    if INDEX_FILE not in listed or is_bound(path, key):
        return
    with published_file(path) as pending:
        mirror.store.copy(INDEX_FILE, listed[INDEX_FILE].num_bytes, pending.stream.fileno())
