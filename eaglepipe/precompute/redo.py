"""Stage 1 again for a few files of a complete cache: the same target and corpus, the same shards."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eaglepipe.cache.manifest import Plan, load_document
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.writer import sidecar_path
from eaglepipe.errors import CacheError, ConfigError, CorruptError, DataError, TargetError
from eaglepipe.files.json_object import diff_fields
from eaglepipe.files.publish import PendingFile
from eaglepipe.precompute.answers.publish import ANSWERS_FILE
from eaglepipe.precompute.content_identity import CacheIdentity, cache_identity
from eaglepipe.precompute.corpus import staged_corpus
from eaglepipe.precompute.inputs import Stage1Inputs, read_stage1_inputs
from eaglepipe.precompute.layout import GROUP_TOKENS, CorpusLayout, lay_out
from eaglepipe.precompute.plan import STAGING, PrecomputePlan, checked_plan, plan_document
from eaglepipe.precompute.staging import StagedTokens
from eaglepipe.recipe.load import parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.recipe.yaml_file import apply_override
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.load import resolve_folder


@dataclass(frozen=True, kw_only=True)
class PlannedAgain:
    """A corpus that is tokenised and laid out as it was, and the list of its drops, which is not published."""

    inputs: Stage1Inputs
    plan: PrecomputePlan
    drops: PendingFile


def declared_recipe(folder: Path, plan: Plan, overrides: Sequence[str]) -> Recipe:
    """Return the recipe that a cache's plan declares, with `overrides` of its settings.

    A cache may come from anywhere, so that it never allows its target's own code to run: an override does.

    Raises:
        CacheError: this release has other settings; names the first that does not fit.
    """
    data = {**plan.declared.get("data", {}), "max_drop_fraction": 1.0}  # the cache was accepted with its drops
    raw: dict[str, Any] = {
        **plan.declared,
        "name": plan.name,
        "target": {**plan.declared.get("target", {}), "trust_remote_code": False},
        "data": data,
        "cache": {**plan.declared.get("cache", {}), "profile": None, "root": str(folder.parent)},
        "train": {"caches": [{"path": str(folder)}]},  # any family will do
    }
    for override in overrides:
        apply_override(raw, override)
    try:
        return parse_recipe(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise CacheError(
            f"{folder}: its plan declares no recipe of this release ({field}: {first['msg']}); name one with --recipe"
        ) from None


@contextmanager
def planned_again(recipe: Recipe, folder: Path, plan: Plan | None, identity: str | None) -> Iterator[PlannedAgain]:
    """Tokenise the corpus of a cache again, into a file that goes when the block ends, and lay it out as it was.

    Args:
        plan: the cache's; None if it is damaged.
        identity: the cache's; None if plan and manifest are damaged.

    Raises:
        EaglepipeError: target or corpus are not at hand.
        CacheError: they are not those of the cache; names the fields that differ.
    """
    if recipe.data.generate is not None:
        raise CacheError(
            f"{folder}: its answers were sampled while it was made, and another run may sample others; make a cache "
            f"of {folder / ANSWERS_FILE} by the same recipe without data.generate, or of other answers in a new folder"
        )
    with ExitStack() as stack:
        with _explained(folder):
            inputs = read_stage1_inputs(recipe)
            weights = weights_fingerprint(resolve_folder(recipe.target))
            file, drops, listed, corpus = stack.enter_context(staged_corpus(inputs, folder / STAGING))
        actual = cache_identity(inputs, weights=weights, corpus=corpus)
        _check_identity(folder, actual, plan, identity)
        tokens = StagedTokens(file.temporary)
        group_tokens = GROUP_TOKENS if plan is None else plan.batch_tokens
        layout = lay_out(inputs, tokens, drops=drops, group_tokens=group_tokens)
        document = plan or plan_document(inputs, actual, layout, staged=file.temporary)
        _check_order(folder, layout, actual.digest)
        yield PlannedAgain(inputs=inputs, plan=checked_plan(folder, document, layout), drops=listed)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (ConfigError, DataError, TargetError) as error:
        raise type(error)(
            f"{folder}: is repaired from its target and its corpus, and those cannot be read: {error}. If they are "
            "elsewhere now, name their places (`target.path=…`, `data.sources=[{path: …}]`), or a recipe with --recipe"
        ) from None


def _check_identity(folder: Path, actual: CacheIdentity, plan: Plan | None, identity: str | None) -> None:
    if actual.digest == (identity or _identity_of_shards(folder)):
        return
    differing = list(diff_fields(plan.identity_fields, actual.fields)) if plan is not None else []
    lines = "".join(f"\n  {line}" for line in differing)
    raise CacheError(
        f"{folder}: target and corpus at hand are not those that it was made from, so nothing is repaired"
        + (f"; what differs:{lines}" if lines else f" (cache {identity or 'unknown'}, at hand {actual.digest})")
    )


def _identity_of_shards(folder: Path) -> str | None:
    """Return the identity of the first sidecar that can be read."""
    for path in sorted(sidecar_path(folder, 0).parent.glob("*.json")):
        try:
            return load_document(path, Sidecar).identity
        except (CacheError, CorruptError):
            continue
    return None


def _check_order(folder: Path, layout: CorpusLayout, identity: str) -> None:
    """Compare the samples of the shards that are there with those of the layout."""
    for number, groups in enumerate(layout.shards):
        try:
            sidecar = load_document(sidecar_path(folder, number), Sidecar)
        except (CacheError, CorruptError):
            continue
        path = f"{folder}/{sidecar.shard.path}"
        if sidecar.identity != identity or sidecar_path(folder, number).with_suffix(".arrow") != Path(path):
            continue
        refused = {sample.sample_id for sample in sidecar.refused}
        ids = [layout.tokens.read(int(sample)).sample_id for group in groups for sample in group]
        if [sample_id for sample_id in ids if sample_id not in refused] != list(sidecar.index.sample_ids):
            raise CorruptError(
                f"{path}: holds other samples than the corpus at hand gives it, in spite of one identity; "
                "name the recipe that made the cache with --recipe"
            )
