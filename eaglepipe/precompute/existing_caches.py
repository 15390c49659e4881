"""Caches of a recipe's content that are there already: complete, or planned and staged."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from eaglepipe.cache.fixed_files import file_problem
from eaglepipe.cache.manifest import DROPS_FILE, MANIFEST_NAME, PLAN_NAME, Plan, load_document
from eaglepipe.cache.storage import cache_root, list_caches, named_caches
from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import FAULTS, FAULTS_OF_CONVERSATIONS
from eaglepipe.chat.sources import fingerprint_sources
from eaglepipe.errors import EaglepipeError, ResourceError
from eaglepipe.files.json_object import differing_leaves
from eaglepipe.precompute.content_identity import cache_identity, read_identity
from eaglepipe.precompute.corpus import has_corpus_files
from eaglepipe.precompute.imported.corpus import ForeignCorpus
from eaglepipe.precompute.imported.listing import folder_listing, recorded_listing
from eaglepipe.precompute.inputs import Stage1Inputs, read_stage1_inputs
from eaglepipe.recipe.tree import Recipe


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


def _is_staged(folder: Path, document: Plan) -> bool:
    """Return whether the tokenised corpus of a begun cache is there; one that cannot be read is not."""
    try:
        return has_corpus_files(folder, document.identity) and file_problem(folder, document.staging) is None
    except ResourceError:
        raise
    except EaglepipeError:
        return False


def find_by_content(recipe: Recipe) -> Path | None:
    """Return the complete cache that holds the content a recipe names, whatever its paths; None if there is none.

    A cache made on another machine, or before a folder moved, was declared in other words. Its identity is computed as
    stage 1 does, from the target and the corpus at hand, and only if there is a complete cache of this name.
    """
    named = [cache for cache in list_caches(cache_root(recipe)) if cache.plan.name == recipe.name]
    complete = {cache.plan.identity: cache.folder for cache in named if cache.manifest is not None}
    if not complete:
        return None
    try:
        return complete.get(read_identity(read_stage1_inputs(recipe)).digest)
    except EaglepipeError:
        return None


def find_without_target(recipe: Recipe, report: Callable[[str], None]) -> Path | None:
    """Return a cache that the same words made earlier of the same rows, if its target is in no folder of this machine.

    If the corpus is gone too, the words alone decide.
    """
    if Path(recipe.target.path).expanduser().exists():
        return None
    complete = [cache for cache in named_caches(recipe) if cache.manifest is not None]
    if not complete:
        return None
    try:
        corpus = fingerprint_sources(recipe.data.sources).hexdigest()
    except EaglepipeError:
        return complete[0].folder
    for cache in complete:
        data = cache.plan.identity_fields.get("data")
        if isinstance(data, dict) and data.get("fingerprint") == corpus:
            return cache.folder
    report(f"{complete[0].folder} was made from other rows than data.sources has now; a new cache needs the target")
    return None
