"""Check of a cache against its manifest: every problem with the file and the sample that it is in."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from eaglepipe.cache.manifest import MANIFEST_NAME, SHARDS_FOLDER, FileEntry, Manifest, repair_advice
from eaglepipe.cache.opening import SizeChecks, load_manifest, read_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.remote.stored import stored_digest, stored_sizes
from eaglepipe.cache.samples.index_file import INDEX_FILE
from eaglepipe.cache.samples.sidecar_index import stored_index
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.leftovers import leftovers
from eaglepipe.progress import ProgressLine

_READERS = 4


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Counts of a check; `problems` is empty for a sound cache."""

    folder: str
    full: bool
    files_checked: int
    samples_checked: int
    bytes_hashed: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def summary(self) -> str:
        """Return one line: sound, or the number of problems."""
        checked = f"{self.files_checked} files, {self.bytes_hashed:,} bytes hashed"
        if self.problems:
            advice = repair_advice(Path(self.folder))
            return f"{self.folder}: DAMAGED, {len(self.problems)} problem(s) ({checked}); {advice}"
        hint = "" if self.full else "; --full hashes the shards too"
        return f"{self.folder}: sound ({checked}{hint})"

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_cache(folder: Path, *, full: bool = False) -> VerifyReport:
    """Check sizes and metadata; with `full`, every byte of every file and every value of every sample.

    Raises:
        CacheError: there is no complete cache to check.
        CorruptError: the manifest itself is damaged, so that nothing else can be judged.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST_NAME).exists() else load_manifest(folder)
    problems = _problem(partial(load_manifest, folder))
    damaged: list[FileEntry] = []
    bytes_hashed = 0
    sizes, shards = SizeChecks(folder), {entry.path for entry in manifest.shards}
    stored = stored_sizes(folder)
    for entry in manifest.all_files():
        if size_problem := _problem(partial(sizes.check, entry)) or _stored_problem(folder, entry, stored):
            problems += size_problem
        elif full or entry.path not in shards:
            bytes_hashed += entry.bytes
            if _digest(folder, entry, is_stored=stored is not None) != entry.xxh3_128:
                damaged.append(entry)
    problems += [f"{folder / entry.path}: its bytes do not match the manifest's checksum" for entry in damaged]
    problems += _useless_index(folder, manifest)
    if full:
        problems += _unsound_samples(folder)
    if not problems:  # the footers of shards whose digests are right; one line, since all were written alike
        problems += _problem(Cache.open(folder, from_sidecars=True).check_shards)
    return VerifyReport(
        folder=str(folder),
        full=full,
        files_checked=len(manifest.all_files()),
        samples_checked=manifest.samples if full else 0,
        bytes_hashed=bytes_hashed,
        problems=tuple(problems),
        notes=tuple(_unlisted_files(folder, {entry.path for entry in manifest.all_files()})),
    )


def _stored_problem(folder: Path, entry: FileEntry, stored: Mapping[str, int] | None) -> list[str]:
    """Compare the size that a store has of a file, whatever copy is at hand."""
    if stored is None or (found := stored.get(entry.path)) == entry.bytes:
        return []
    reason = "missing in the store" if found is None else f"{found:,} bytes, published with {entry.bytes:,}"
    return [f"{folder / entry.path}: {reason}"]


def _digest(folder: Path, entry: FileEntry, *, is_stored: bool) -> str:
    return stored_digest(folder, entry) if is_stored else hash_file(folder / entry.path)


def _problem(check: Callable[[], object]) -> list[str]:
    """Run a check; return its error's message, if any."""
    try:
        check()
    except (CacheError, CorruptError) as error:
        return [str(error)]
    return []


def _unsound_samples(folder: Path) -> list[str]:
    """Read every sample, a few shards at a time, if the cache can be opened at all."""
    try:
        cache = Cache.open(folder, from_sidecars=True)
    except (CacheError, CorruptError):
        return []
    shards = cache.manifest.shards
    ends = list(accumulate((entry.samples for entry in shards), initial=0))

    def problems_of(shard: int) -> list[str]:
        reader = copy(cache)  # with files of its own
        return [
            text for sample in range(ends[shard], ends[shard + 1]) for text in _problem(partial(reader.read, sample))
        ]

    found: list[str] = []
    with (
        ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), "verify") as readers,
        ProgressLine("verify", total=cache.manifest.bytes, unit="B") as progress,
    ):
        for entry, problems in zip(shards, readers.map(problems_of, range(len(shards))), strict=True):
            found += problems
            progress.update(entry.bytes)
    return found


def _useless_index(folder: Path, manifest: Manifest) -> list[str]:
    path = folder / INDEX_FILE
    if not path.exists() or stored_index(path, manifest) is not None:
        return []
    return [f"{path}: not the index of these shards, so the sidecars are read in its place"]


def _unlisted_files(folder: Path, listed: set[str]) -> list[str]:
    unknown = [
        path for path in sorted((folder / SHARDS_FOLDER).glob("*")) if f"{SHARDS_FOLDER}/{path.name}" not in listed
    ]
    unfinished = set(leftovers(folder))
    return [f"{path}: not part of the cache" for path in unknown if path not in unfinished] + [
        f"{path}: left behind by a stopped writer" for path in sorted(unfinished)
    ]
