"""From checked inputs to a planned cache: tokenise the corpus, identify the cache, publish its plan, or resume one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from eaglepipe.cache.fixed_files import file_problem, record_files, recorded_files
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
from eaglepipe.cache.storage import (
    WORK_FOLDER,
    cache_root,
    declared_sections,
    list_caches,
    staging_path,
)
from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import FAULTS, FAULTS_OF_CONVERSATIONS
from eaglepipe.chat.sources import CorpusFingerprint, fingerprint_sources, iter_conversations
from eaglepipe.chat.tokens import TokenSample, iter_token_samples
from eaglepipe.errors import CacheError, CorruptError, EaglepipeError, ResourceError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.json_object import diff_fields, differing_leaves
from eaglepipe.files.leftovers import leftover_siblings, remove_abandoned
from eaglepipe.files.publish import PendingFile, check_free_bytes, explained_os_errors
from eaglepipe.precompute.answers.prompts import iter_prompts
from eaglepipe.precompute.content_identity import CacheIdentity, cache_identity
from eaglepipe.precompute.imported.corpus import ForeignCorpus
from eaglepipe.precompute.imported.listing import folder_listing, record_listing, recorded_listing
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.layout import GROUP_TOKENS, CorpusLayout, lay_out
from eaglepipe.precompute.staging import StagedPrompt, StagedStates, StagedTokens, count_tokens, write_staging
from eaglepipe.recipe.config import TargetConfig

_ROOM_ADVICE = "set cache.root to a larger disk, or lower the bytes a token (`eaglepipe estimate`)"
STAGING = f"{WORK_FOLDER}/tokens.arrow"


@dataclass(frozen=True, kw_only=True)
class PrecomputePlan:
    """A cache to be filled: its folder, its published plan, and the layout of its corpus."""

    folder: Path
    document: Plan
    layout: CorpusLayout


def find_begun(inputs: Stage1Inputs, weights: str) -> Path | None:
    """Return the folder of the cache of this very content, if it is complete, or planned and staged.

    The corpus is only read if a cache of the same target and settings is there.

    Raises:
        DataError: too many rows are faulty now, whichever were when the cache was begun.
    """
    fields = cache_identity(inputs, weights=weights, corpus="").fields
    found = list_caches(cache_root(inputs.recipe))
    candidates = {
        cache.plan.identity: cache.folder
        for cache in sorted(found, key=lambda cache: cache.manifest is not None)  # of two, the complete one
        if cache.plan.name == inputs.recipe.name
        and {name for name, _, _ in differing_leaves(cache.plan.identity_fields, fields)} == {"data.fingerprint"}
        and (cache.manifest is not None or _is_staged(cache.folder, cache.plan))
    }
    if not candidates:
        return None
    if inputs.recipe.data.imported is not None:
        return _find_imported(inputs, candidates, weights)
    corpus = fingerprint_sources(inputs.recipe.data.sources)
    folder = candidates.get(cache_identity(inputs, weights=weights, corpus=corpus.hexdigest()).digest)
    if folder is not None:
        _check_faults(inputs, folder, corpus.faults)
    return folder


def _find_imported(inputs: Stage1Inputs, candidates: Mapping[str, Path], weights: str) -> Path | None:
    """Return the cache of a folder of another tool, which is read only if its files are not those of a begun cache."""
    listing = folder_listing(inputs)
    if (begun := [folder for folder in candidates.values() if recorded_listing(folder) == listing]) or not any(
        (folder / MANIFEST_NAME).exists() for folder in candidates.values()
    ):
        return begun[0] if begun else None
    corpus = ForeignCorpus(inputs, DropLog(), report=lambda _: None)
    deque(corpus.samples(), maxlen=0)
    return candidates.get(cache_identity(inputs, weights=weights, corpus=corpus.hexdigest()).digest)


def _check_faults(inputs: Stage1Inputs, folder: Path, read_now: DropLog) -> None:
    """Check the share of faulty rows; rows that cannot be read may have come since the cache was begun."""
    document = load_document(folder / PLAN_NAME, Plan)
    drops = DropLog.resumed(document.drops, folder / DROPS_FILE)
    for reason in set(FAULTS) - FAULTS_OF_CONVERSATIONS:
        drops.counts[reason] = read_now.counts[reason]
    drops.examples |= read_now.examples
    drops.check(document.samples, inputs.recipe.data.max_drop_fraction)


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
        _publish_drops(folder, identity.digest, drops, listed)
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


@contextmanager
def staged_corpus(
    inputs: Stage1Inputs, path: Path, report: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[PendingFile, DropLog, PendingFile, str]]:
    """Tokenise the corpus, each row parsed once, into a file beside `path` that is not published.

    With it come the drops, the file that lists them, which is not published either, and the corpus's fingerprint.
    """
    data = inputs.recipe.data
    _check_writable(path.parent)
    remove_abandoned(leftover_siblings(path))
    file, listed = PendingFile(path), PendingFile(path.with_name(f"{path.name}.drops"))
    drops = DropLog(listed.stream)
    try:
        corpus = _corpus(inputs, drops, report)
        if write_staging(corpus.samples, file, kind=corpus.kind) == 0:
            drops.check(0, data.max_drop_fraction)
        yield file, drops, listed, corpus.hexdigest()
    finally:
        file.abort()
        listed.abort()


@dataclass(frozen=True, kw_only=True)
class _Corpus:
    """Samples to be staged, all of one kind, and the fingerprint of those that were read so far."""

    samples: Iterable[TokenSample]
    kind: type[TokenSample]
    hexdigest: Callable[[], str]


def _corpus(inputs: Stage1Inputs, drops: DropLog, report: Callable[[str], None]) -> _Corpus:
    data = inputs.recipe.data
    if data.imported is not None:
        foreign = ForeignCorpus(inputs, drops, report)
        return _Corpus(samples=foreign.samples(), kind=StagedStates, hexdigest=foreign.hexdigest)
    fingerprint = CorpusFingerprint()
    rows = fingerprint.through(iter_conversations(data.sources))
    if data.generate is not None:
        return _Corpus(samples=iter_prompts(rows, inputs, drops), kind=StagedPrompt, hexdigest=fingerprint.hexdigest)
    tokens = iter_token_samples(rows, inputs.chat, data, drops, inputs.spec.vocab_size)
    served = _served(tokens, inputs.recipe.target, drops)
    return _Corpus(samples=served, kind=TokenSample, hexdigest=fingerprint.hexdigest)


def _served(samples: Iterable[TokenSample], target: TargetConfig, drops: DropLog) -> Iterator[TokenSample]:
    """Yield the samples that the target's engine may read at once."""
    limit = target.engine_args.get("max_model_len")
    for sample in samples:
        if limit is None or (num_tokens := count_tokens(sample)[0]) <= limit:
            yield sample
            continue
        detail = f"{num_tokens:,} tokens, and target.engine_args.max_model_len is {limit:,}"
        drops.add("too_long_for_engine", where=f"sample id {sample.sample_id!r}", source=sample.source, detail=detail)


def _publish_drops(folder: Path, identity: str, drops: DropLog, listed: PendingFile) -> None:
    """Publish the list of drops if there are any, and record that it is published, or that there is none."""
    if has_corpus_files(folder, identity):  # by another worker, whose paths may be others
        return
    entries = (publish_list(folder, listed),) if drops.counts.total() else ()
    record_files(folder, "corpus", identity, entries)


def publish_list(folder: Path, listed: PendingFile) -> FileEntry:
    """Publish the list of drops."""
    with explained_os_errors(listed.path):
        listed.stream.flush()
        num_bytes, digest = listed.temporary.stat().st_size, hash_file(listed.temporary)
    listed.publish(path=folder / DROPS_FILE)
    return FileEntry(path=DROPS_FILE, bytes=num_bytes, xxh3_128=digest)


def _check_writable(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise EaglepipeError(f"{root}: not writable ({error.strerror}); set cache.root to a folder that is") from None


def _is_staged(folder: Path, document: Plan) -> bool:
    """Return whether the tokenised corpus of a begun cache is there; one that cannot be read is not."""
    try:
        return has_corpus_files(folder, document.identity) and file_problem(folder, document.staging) is None
    except ResourceError:
        raise
    except EaglepipeError:
        return False


def has_corpus_files(folder: Path, identity: str) -> bool:
    """Return whether the files that come with the tokenised corpus are published, every byte."""
    entries = recorded_files(folder, "corpus", identity)
    return entries is not None and all(file_problem(folder, entry) is None for entry in entries)


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
