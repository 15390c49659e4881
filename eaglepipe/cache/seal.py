"""The last step of a cache: everything published is compared with its digest, counted and listed in the manifest."""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from eaglepipe import __version__
from eaglepipe.cache.fixed_files import ORIGINS, file_problem, file_problems, record_path, recorded_files
from eaglepipe.cache.manifest import (
    ALL_LAST_HIDDEN,
    MANIFEST_NAME,
    PLAN_NAME,
    ROTATED_STATES,
    SAMPLED_SUPERVISION,
    SHARDS_FOLDER,
    FileEntry,
    Manifest,
    Plan,
    ShardEntry,
    SpecDocument,
    document_bytes,
    file_entry,
    load_document,
)
from eaglepipe.cache.published import read_published
from eaglepipe.cache.remote.push import forget_shard, push_files, push_index, push_manifest
from eaglepipe.cache.samples.sidecar_index import write_index
from eaglepipe.cache.schema import SCHEMA_VERSION, ShardSpec
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache.supervision.sampled import SampledSupervision
from eaglepipe.cache.writer import shard_path, sidecar_path
from eaglepipe.errors import CorruptError, DataError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_bytes
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.target_head import HeadSpec

HEAD_FILE = "head.json"
_SHOWN = 4


class UnsoundError(CorruptError):
    """Files of an incomplete cache that are not as they were published; `problems` has the reason of each path."""

    def __init__(self, folder: Path, problems: Mapping[str, str]) -> None:
        shown = "; ".join(f"{path}: {reason}" for path, reason in list(problems.items())[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        super().__init__(f"{folder}: {len(problems)} of its files are not as they were published ({shown}{more})")
        self.problems = dict(problems)


@dataclass(frozen=True, kw_only=True)
class PublishedShard:
    """A published shard, without the index of its samples."""

    entry: ShardEntry
    sidecar: FileEntry
    refused: Counter[str]  # samples by cause

    @classmethod
    def read(cls, folder: Path, plan: Plan, shard: int) -> "PublishedShard":
        """Read a shard's sidecar.

        Raises:
            UnsoundError: shard and sidecar are not those of the plan, or do not fit each other.
        """
        sidecar, path = read_published(folder, plan, shard), sidecar_path(folder, shard)
        if isinstance(sidecar, str):
            raise UnsoundError(folder, {f"{SHARDS_FOLDER}/{shard_path(folder, shard).name}": sidecar})
        name = f"{SHARDS_FOLDER}/{path.name}"
        with explained_read_errors(path):
            data = path.read_bytes()
        if data != document_bytes(sidecar) and load_document(path, Sidecar) != sidecar:
            raise UnsoundError(folder, {name: "changed while it was read"})
        return cls(
            entry=sidecar.shard,
            sidecar=file_entry(name, data),
            refused=Counter(sample.cause for sample in sidecar.refused),
        )


def seal_cache(
    folder: Path,
    plan: Plan,
    spec: ShardSpec,
    *,
    max_length: int,
    fixed: Iterable[FileEntry] | None = None,
    more: Iterable[FileEntry] = (),
) -> Manifest:
    """Hash every file of a cache, write the manifest if all are as they were published, and drop its work folder.

    Args:
        fixed: the files besides plan and shards; default: those that are recorded in the cache.
        more: files besides those.

    Raises:
        UnsoundError: naming files that are missing, or differ from what was published; there is no manifest then.
        DataError: the target gave a finite result for no sample at all.
    """
    fixed = (*(_recorded(folder, plan) if fixed is None else fixed), *more)
    shards = checked_shards(folder, plan)
    if problems := {entry.path: problem for entry in fixed if (problem := file_problem(folder, entry))}:
        raise UnsoundError(folder, problems)
    manifest = _manifest(
        plan, shards, (*fixed, plan_entry(folder, plan)), spec, _spec_document(folder, spec, max_length)
    )
    if manifest.samples == 0:
        raise DataError(f"{folder}: the target gave no finite result for any sample; is its dtype wide enough?")
    data = document_bytes(manifest)
    write_index(folder, manifest)
    push_files(folder, manifest.files)
    push_index(folder)
    push_manifest(folder, data)
    publish_bytes(folder / MANIFEST_NAME, data)
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
    return manifest


def forget_unsound(folder: Path, plan: Plan, error: UnsoundError) -> None:
    """Drop what says that these files are published, so that whoever goes on with the cache publishes them again."""
    for path in error.problems:
        if path == PLAN_NAME:
            publish_bytes(folder / PLAN_NAME, document_bytes(plan))
        elif path.startswith(f"{SHARDS_FOLDER}/"):
            forget_shard(folder, path)
            (folder / path).with_suffix(".json").unlink(missing_ok=True)
        else:
            for origin in ORIGINS:
                entries = recorded_files(folder, origin, plan.identity)
                if entries is None or path in {entry.path for entry in entries}:
                    record_path(folder, origin).unlink(missing_ok=True)


def _recorded(folder: Path, plan: Plan) -> tuple[FileEntry, ...]:
    records = {origin: recorded_files(folder, origin, plan.identity) for origin in ORIGINS}
    lost = {
        record_path(folder, origin).relative_to(folder).as_posix(): "absent or damaged"
        for origin, entries in records.items()
        if entries is None
    }
    if lost:
        raise UnsoundError(folder, lost)
    return tuple(entry for entries in records.values() for entry in entries or ())


def checked_shards(folder: Path, plan: Plan) -> list[PublishedShard]:
    """Hash all shards, a few at a time, and compare them with their sidecars."""
    shards: list[PublishedShard] = []
    problems: dict[str, str] = {}
    for number in range(plan.shards):
        try:
            shards.append(PublishedShard.read(folder, plan, number))
        except UnsoundError as error:
            problems |= error.problems
    for shard, problem in zip(shards, file_problems(folder, [shard.entry for shard in shards]), strict=True):
        if problem is not None:
            problems[shard.entry.path] = problem
    if problems:
        raise UnsoundError(folder, problems)
    return shards


def plan_entry(folder: Path, plan: Plan) -> FileEntry:
    """Return the entry of the plan, whose bytes no record holds: its checksum of itself decides."""
    try:
        entry = file_entry(PLAN_NAME, (folder / PLAN_NAME).read_bytes())
        is_published = load_document(folder / PLAN_NAME, Plan) == plan
    except (FileNotFoundError, CorruptError):
        is_published = False
    if not is_published:
        raise UnsoundError(folder, {PLAN_NAME: "lost, damaged or another one"})
    return entry


def _spec_document(folder: Path, spec: ShardSpec, max_length: int) -> SpecDocument:
    try:
        head = HeadSpec(**read_json_object(folder / HEAD_FILE))
    except TypeError as error:
        raise CorruptError(f"{folder / HEAD_FILE}: not the scale and cap of a head ({error})") from None
    fields = {name: value for name, value in asdict(spec).items() if name != "last_hidden"}  # a feature of the manifest
    return SpecDocument(max_length=max_length, **fields, **asdict(head))


def _features(spec: ShardSpec) -> tuple[str, ...]:
    """What readers of the first release do not know."""
    return (
        *((ALL_LAST_HIDDEN,) if spec.last_hidden == "all" else ()),
        *((ROTATED_STATES,) if spec.rotates else ()),
        *((SAMPLED_SUPERVISION,) if spec.supervision == SampledSupervision.name else ()),
    )


def _manifest(
    plan: Plan, shards: list[PublishedShard], files: tuple[FileEntry, ...], shard_spec: ShardSpec, spec: SpecDocument
) -> Manifest:
    entries = tuple(shard.entry for shard in shards)
    refused = sum((shard.refused for shard in shards), Counter[str]())
    return Manifest(
        schema_version=SCHEMA_VERSION,
        features=_features(shard_spec),
        name=plan.name,
        identity=plan.identity,
        created_by=f"eaglepipe {__version__}",
        complete=True,
        spec=spec,
        samples=sum(entry.samples for entry in entries),
        tokens=sum(entry.tokens for entry in entries),
        supervised_tokens=sum(entry.supervised_tokens for entry in entries),
        bytes=sum(entry.bytes for entry in entries),
        drops={**plan.drops, **refused},
        shards=entries,
        sidecars=tuple(shard.sidecar for shard in shards),
        files=tuple(sorted(files, key=lambda entry: PurePosixPath(entry.path))),
    )
