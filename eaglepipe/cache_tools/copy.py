"""Copies of complete caches from one folder or store to another: every byte checked, plan first, manifest last.

Run again, a copy goes on where it was stopped; what is there already and sound is left. Files that are there with other
bytes are replaced, so that copying a repaired cache back repairs the one in a store.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.fixed_files import file_problem
from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, FileEntry, repair_advice
from eaglepipe.cache.opening import load_manifest, load_plan
from eaglepipe.cache.remote.pull import pull
from eaglepipe.cache.remote.push import push_file, push_manifest
from eaglepipe.cache.remote.shards import held_shard
from eaglepipe.cache.remote.stored import is_stored, stored_problem
from eaglepipe.cache.samples.index_file import INDEX_FILE
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache_tools.derive import check_free_for
from eaglepipe.errors import CacheError, ConfigError, CorruptError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.lock import FOLDER_LOCK, write_lock
from eaglepipe.files.publish import check_free_bytes, publish_bytes, publish_copy
from eaglepipe.progress import ProgressLine
from eaglepipe.stores.local import mirror_of


@dataclass(frozen=True, kw_only=True)
class CopyReport:
    """The files of a copy, and those that were not there yet."""

    folder: str
    identity: str
    files: int
    copied: int
    bytes_copied: int
    left_out: dict[str, str]  # damaged files, with the reasons

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        """Return a line for each damaged file, and one for the copy."""
        lines = [f"{path}: left out ({reason})" for path, reason in self.left_out.items()]
        state = "complete" if not lines else f"DAMAGED; {repair_advice(Path(self.folder))}"
        copied = f"{self.copied} of {self.files} files copied, {self.bytes_copied:,} bytes"
        return "\n".join([*lines, f"{self.folder}: {copied}; {state}"])


def copy_cache(source: Path, folder: Path, *, skip_damaged: bool = False) -> CopyReport:
    """Copy a complete cache.

    Args:
        skip_damaged: leave damaged files of the source out, for a copy in a folder that is then repaired.

    Raises:
        CacheError: the source is incomplete; `folder` holds something else.
        CorruptError: a file of the source is damaged.
        ResourceError: the disk is too small.
        ConfigError: another process is writing the folder.
    """
    check_free_for(folder, [source])
    manifest = load_manifest(source)
    if (folder / PLAN_NAME).exists() and (other := load_plan(folder).identity) != manifest.identity:
        raise CacheError(f"{folder}: holds cache {other}, not {manifest.identity}; name another folder")
    if skip_damaged and is_stored(folder):
        raise ConfigError(f"{folder}: a damaged cache is repaired on a disk; copy it to a folder of this machine")
    data, left_out = (source / MANIFEST_NAME).read_bytes(), dict[str, str]()
    with write_lock(folder / WORK_FOLDER / FOLDER_LOCK, folder):
        missing = _missing_files(folder, manifest.all_files())
        if mirror_of(folder) is None:
            check_free_bytes(folder, sum(entry.bytes for entry in missing), advice="name a folder on a larger disk")
        plan_first = sorted(missing, key=lambda entry: entry.path != PLAN_NAME)
        with ProgressLine("copy", total=sum(entry.bytes for entry in missing), unit="B") as progress:
            for entry in plan_first:
                try:
                    _copy_file(source, folder, entry)
                except CorruptError as error:
                    if not skip_damaged:
                        raise
                    left_out[entry.path] = str(error)
                progress.update(entry.bytes)
        _copy_index(source, folder)
        push_manifest(folder, data)
        publish_bytes(folder / MANIFEST_NAME, data)
    pull(folder)
    return CopyReport(
        folder=str(folder),
        identity=manifest.identity,
        files=len(manifest.all_files()),
        copied=len(missing) - len(left_out),
        bytes_copied=sum(entry.bytes for entry in missing if entry.path not in left_out),
        left_out=left_out,
    )


def _missing_files(folder: Path, entries: tuple[FileEntry, ...]) -> list[FileEntry]:
    is_stored = mirror_of(folder) is not None
    return [entry for entry in entries if (stored_problem if is_stored else file_problem)(folder, entry) is not None]


def _copy_file(source: Path, folder: Path, entry: FileEntry) -> None:
    with _at_hand(source, entry) as path:
        if mirror_of(folder) is not None:
            push_file(folder, entry, path)
        else:
            publish_copy(path, folder / entry.path, digest=entry.xxh3_128)


def _copy_index(source: Path, folder: Path) -> None:
    """Copy the index of the samples, which the manifest does not list, if there is one."""
    if (path := source / INDEX_FILE).is_file():
        _copy_file(source, folder, FileEntry(path=INDEX_FILE, bytes=path.stat().st_size, xxh3_128=hash_file(path)))


@contextmanager
def _at_hand(source: Path, entry: FileEntry) -> Iterator[Path]:
    """Hold a file of the source on this machine."""
    hold = held_shard(source, entry) if entry.path.endswith(".arrow") else None
    try:
        yield source / entry.path
    finally:
        if hold is not None:
            hold.release()
