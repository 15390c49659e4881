"""From checked inputs to a planned cache: identify it, lay its corpus out, publish its plan, or resume one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eaglepipe.cache.identity import cache_folder_name, check_plan
from eaglepipe.cache.manifest import (
    DROPS_FILE,
    MANIFEST_NAME,
    PLAN_NAME,
    FileEntry,
    Plan,
    document_bytes,
    load_document,
)
from eaglepipe.cache.opening import read_manifest
from eaglepipe.cache.remote.push import put_plan
from eaglepipe.cache.remote.stored import is_stored
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.cache.storage import WORK_FOLDER, cache_root, declared_sections, list_caches, staging_path
from eaglepipe.chat.drops import DropLog
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.json_object import diff_fields
from eaglepipe.files.publish import check_free_bytes
from eaglepipe.precompute.content_identity import CacheIdentity, cache_identity
from eaglepipe.precompute.corpus import publish_drops, staged_corpus
from eaglepipe.precompute.imported.listing import record_listing
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.layout import GROUP_TOKENS, CorpusLayout, lay_out
from eaglepipe.precompute.staging import StagedTokens

_ROOM_ADVICE = "set cache.root to a larger disk, or lower the bytes a token (`eaglepipe estimate`)"
STAGING = f"{WORK_FOLDER}/tokens.arrow"


@dataclass(frozen=True, kw_only=True)
class PrecomputePlan:
    """A cache to be filled: its folder, its published plan, and the layout of its corpus."""

    folder: Path
    document: Plan
    layout: CorpusLayout


def resume_plan(inputs: Stage1Inputs, folder: Path) -> PrecomputePlan:
    """Map the staged corpus of a cache that was begun, and lay it out again.

    Raises:
        CorruptError: the corpus does not give the shards of the plan.
    """
    document = load_document(folder / PLAN_NAME, Plan)
    tokens = StagedTokens(folder / STAGING)
    drops = DropLog.resumed(document.drops, folder / DROPS_FILE)
    layout = lay_out(inputs, tokens, drops=drops, group_tokens=document.batch_tokens)
    return checked_plan(folder, document, layout)


def begin_plan(inputs: Stage1Inputs, weights: str, report: Callable[[str], None]) -> PrecomputePlan:
    """Tokenise the corpus and publish the plan, or check the one that another worker has published.

    Raises:
        DataError: sources that cannot be read, too many faulty rows, or no sample is left.
        CacheError: the folder's plan is of another identity; names the fields that differ.
        ResourceError: the disk is too small for the cache.
    """
    with staged_corpus(inputs, staging_path(inputs.recipe), report) as (file, drops, listed, corpus):
        identity = cache_identity(inputs, weights=weights, corpus=corpus)
        folder = identity.folder(inputs.recipe)
        document = _existing_plan(folder, identity, report)
        if document is None and (note := _nearest_cache(inputs, identity)):
            report(note)
        group_tokens = GROUP_TOKENS if document is None else document.batch_tokens
        layout = lay_out(inputs, StagedTokens(file.temporary), drops=drops, group_tokens=group_tokens)
        if (
            document is None and inputs.recipe.data.generate is None and not is_stored(folder)
        ):  # answers are shorter than they may be
            check_free_bytes(folder, layout.estimated_bytes, advice=_ROOM_ADVICE)
        publish_drops(folder, identity.digest, drops, listed)
        file.publish(path=folder / STAGING)
        record_listing(inputs, folder)
    if document is None:
        document = _publish_plan(inputs, folder, identity, layout)
        if document.batch_tokens != group_tokens:  # another worker was first, of a release that grouped otherwise
            return resume_plan(inputs, folder)
    return checked_plan(folder, document, layout)


def preview_plan(inputs: Stage1Inputs) -> CorpusLayout:
    """Tokenise and lay out the corpus without leaving a file; for a cache whose identity is not known yet."""
    with staged_corpus(inputs, staging_path(inputs.recipe)) as (file, drops, *_):
        return lay_out(inputs, StagedTokens(file.temporary), drops=drops)


def _existing_plan(folder: Path, identity: CacheIdentity, report: Callable[[str], None]) -> Plan | None:
    """Return the plan in the folder of an identity, if there is one; a damaged one is removed until it is sealed.

    Raises:
        CacheError: the folder holds files of another cache; names both identities.
        CorruptError: the plan of a complete cache is damaged, or was changed.
    """
    document = _readable_plan(folder, report)
    if document is not None:
        if document.identity != identity.digest:
            event = _taken(folder, PLAN_NAME, document.identity, identity)
            raise CacheError(_difference(event, document, identity))
        check_plan(folder, document)
    try:
        manifest = read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
    except CorruptError:
        return document  # a new one is written
    if manifest is not None and manifest.identity != identity.digest:
        raise CacheError(_taken(folder, MANIFEST_NAME, manifest.identity, identity))
    return document


def _readable_plan(folder: Path, report: Callable[[str], None]) -> Plan | None:
    path = folder / PLAN_NAME
    if not path.exists():
        return None
    try:
        return load_document(path, Plan)
    except CorruptError:
        if (folder / MANIFEST_NAME).exists():
            raise
        report(f"{path}: damaged, made again")
        path.unlink(missing_ok=True)
        return None


def _taken(folder: Path, name: str, other: str, identity: CacheIdentity) -> str:
    return (
        f"{folder}: its {name} is of cache {other}, and this recipe with its corpus gives cache {identity.digest}; "
        "move the folder away and run the command again"
    )


def _nearest_cache(inputs: Stage1Inputs, identity: CacheIdentity) -> str | None:
    """Describe how the closest existing cache of the same name differs, for a user who expected it to be reused."""
    caches = list_caches(cache_root(inputs.recipe))
    plans = [cache.plan for cache in caches if cache.plan.name == inputs.recipe.name]
    if not plans:
        return None
    nearest = min(plans, key=lambda plan: len(list(diff_fields(plan.identity_fields, identity.fields))))
    name = cache_folder_name(nearest.name, nearest.identity)
    return _difference(f"a new cache is begun: {name} exists, but is not the same", nearest, identity)


def _difference(event: str, document: Plan, identity: CacheIdentity) -> str:
    lines = [f"  {line}" for line in diff_fields(document.identity_fields, identity.fields)]
    return "\n".join([f"{event}; what differs:", *lines])


def _publish_plan(inputs: Stage1Inputs, folder: Path, identity: CacheIdentity, layout: CorpusLayout) -> Plan:
    """Publish the plan of a staged corpus; returns the one of another worker if that was first."""
    document = plan_document(inputs, identity, layout, staged=folder / STAGING)
    if put_plan(folder / PLAN_NAME, document_bytes(document)):
        return document
    return load_document(folder / PLAN_NAME, Plan)


def plan_document(inputs: Stage1Inputs, identity: CacheIdentity, layout: CorpusLayout, *, staged: Path) -> Plan:
    """Return the plan of a corpus that is laid out; `staged` is the file of its tokens."""
    statistics = layout.statistics
    return Plan(
        schema_version=SCHEMA_VERSION,
        name=inputs.recipe.name,
        identity=identity.digest,
        identity_fields=identity.fields,
        declared=declared_sections(inputs.recipe),
        batch_tokens=layout.group_tokens,
        samples=statistics.num_distinct,
        tokens=statistics.total_tokens,
        supervised_tokens=statistics.total_supervised,
        shards=len(layout.shards),
        drops=dict(sorted((+layout.drops.counts).items())),
        staging=FileEntry(path=STAGING, bytes=staged.stat().st_size, xxh3_128=hash_file(staged)),
    )


def checked_plan(folder: Path, document: Plan, layout: CorpusLayout) -> PrecomputePlan:
    if len(layout.shards) != document.shards or layout.statistics.num_distinct != document.samples:
        raise CorruptError(f"{folder / PLAN_NAME}: its corpus is laid out into other shards than it lists")
    return PrecomputePlan(folder=folder, document=document, layout=layout)
