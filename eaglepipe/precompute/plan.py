"""From checked inputs to planned work: the tokenised corpus, the published plan, the vocabulary, the shards' batches.

All of it is a pure function of the recipe and the bytes it names, so that every worker comes to the same work.
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eaglepipe.cache.identity import diff_fields
from eaglepipe.cache.manifest import PLAN_NAME, FileEntry, Plan, document_bytes, load_document
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.cache.storage import WORK_FOLDER, cache_root, declared_sections, list_caches
from eaglepipe.cache.token_cost import TokenCost, token_cost
from eaglepipe.chat.sources import iter_conversations
from eaglepipe.chat.tokens import iter_token_samples
from eaglepipe.chat.types import DropCounts
from eaglepipe.errors import CacheError, CorruptError, DataError, EaglepipeError, ResourceError, StoppedError
from eaglepipe.files.hashing import hash_file
from eaglepipe.files.publish import free_bytes, put_if_absent
from eaglepipe.precompute.batches import Batch, plan_shards
from eaglepipe.precompute.inputs import Inputs
from eaglepipe.precompute.staging import StagedStatistics, StagedTokens, write_staging
from eaglepipe.vocab import DraftVocab, build_draft_vocab

_DISK_MARGIN = 1.02


@dataclass(frozen=True, kw_only=True)
class Work:
    """A planned cache: shard i is computed batch by batch from `shards[i]`, whose samples are in `tokens`."""

    folder: Path
    plan: Plan
    tokens: StagedTokens
    statistics: StagedStatistics
    vocab: DraftVocab
    shards: list[list[Batch]]
    cost: TokenCost

    @property
    def estimated_bytes(self) -> int:
        return int(self.cost.total * self.plan.tokens)

    def shard_tokens(self, shard: int) -> int:
        return sum(int(self.statistics.num_tokens[batch].sum()) for batch in self.shards[shard])


def make_work(inputs: Inputs) -> Work:
    """Tokenise (or map what was tokenised) and publish the plan (or check the one that is there).

    What a corpus leaves that cannot be planned is removed; what a stopped process left is gone on with.

    Raises:
        DataError: every sample was dropped.
        CacheError: the folder's plan is of another identity, told field by field.
        ResourceError: the disk is too small for the cache.
    """
    _check_writable(inputs.folder)
    try:
        return _plan_work(inputs)
    except StoppedError:
        raise
    except EaglepipeError:
        _remove_unplanned(inputs.folder)
        raise


def _remove_unplanned(folder: Path) -> None:
    if not (folder / PLAN_NAME).exists():
        shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
        with suppress(OSError):  # other files are in it
            folder.rmdir()


def _plan_work(inputs: Inputs) -> Work:
    folder = inputs.folder
    plan = _existing_plan(inputs)
    staging = folder / WORK_FOLDER / "tokens.arrow"
    staged = plan is not None and _is_staged(staging, plan)
    drops = DropCounts(plan.drops) if plan is not None and staged else _stage(inputs, staging)
    tokens = StagedTokens(staging)
    statistics = tokens.statistics(inputs.spec.vocab_size)
    forced = inputs.chat.special_ids() if inputs.chat else ()
    vocab = build_draft_vocab(statistics.token_counts, inputs.spec.draft_vocab_size, inputs.spec.vocab_size, forced)
    cost = _cost(inputs, statistics)
    if plan is None:
        plan = _publish_plan(inputs, staging, statistics, drops)
    shards = _shards(inputs, plan.batch_tokens, statistics)
    if len(shards) != plan.shards or len(statistics.kept) != plan.samples:
        raise CorruptError(f"{folder / PLAN_NAME}: its corpus is laid out into other shards than it says")
    return Work(
        folder=folder,
        plan=plan,
        tokens=tokens,
        statistics=statistics,
        vocab=vocab,
        shards=shards,
        cost=cost,
    )


def nearest_cache(inputs: Inputs) -> str | None:
    """How the closest existing cache of the same name differs, for a user who expected it to be reused."""
    root = cache_root(inputs.recipe)
    others = [found.plan for found in list_caches(root) if found.plan.name == inputs.recipe.name]
    if not others:
        return None
    nearest = min(others, key=lambda plan: len(list(diff_fields(plan.identity_fields, inputs.identity_fields))))
    what = f"a new cache is begun: {nearest.name}-{nearest.identity[:12]} exists, but is not the same"
    return _difference(what, nearest, inputs)


def _difference(what: str, plan: Plan, inputs: Inputs) -> str:
    lines = [f"  {line}" for line in diff_fields(plan.identity_fields, inputs.identity_fields)]
    return "\n".join([f"{what}; what differs:", *lines])


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EaglepipeError(f"{folder}: not writable ({error.strerror}); set cache.root to a folder that is") from None


def _existing_plan(inputs: Inputs) -> Plan | None:
    path = inputs.folder / PLAN_NAME
    if not path.exists():
        return None
    plan = load_document(path, Plan)
    if plan.identity != inputs.identity:
        raise CacheError(_difference(f"{inputs.folder} was begun with another recipe", plan, inputs))
    return plan


def _is_staged(staging: Path, plan: Plan) -> bool:
    if not staging.exists():
        return False
    return staging.stat().st_size == plan.staging.bytes and hash_file(staging) == plan.staging.xxh3_128


def _stage(inputs: Inputs, staging: Path) -> DropCounts:
    drops = DropCounts()
    data = inputs.recipe.data
    samples = iter_token_samples(iter_conversations(data.sources), inputs.chat, data, drops)
    try:
        write_staging(samples, staging)
    except DataError as error:
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(drops.items()) if count)
        raise DataError(f"{error}; dropped: {counted}" if counted else str(error)) from None
    return drops


def _publish_plan(inputs: Inputs, staging: Path, statistics: StagedStatistics, drops: DropCounts) -> Plan:
    kept = statistics.kept
    drops["duplicate"] += statistics.num_duplicates
    batch_tokens = inputs.recipe.precompute.batch_tokens
    plan = Plan(
        schema_version=SCHEMA_VERSION,
        name=inputs.recipe.name,
        identity=inputs.identity,
        identity_fields=inputs.identity_fields,
        declared=declared_sections(inputs.recipe),
        batch_tokens=batch_tokens,
        samples=len(kept),
        tokens=int(statistics.num_tokens[kept].sum(dtype=np.int64)),
        supervised_tokens=int(statistics.num_supervised[kept].sum(dtype=np.int64)),
        shards=len(_shards(inputs, batch_tokens, statistics)),
        drops={reason: count for reason, count in sorted(drops.items()) if count},
        staging=FileEntry(
            path=f"{WORK_FOLDER}/{staging.name}", bytes=staging.stat().st_size, xxh3_128=hash_file(staging)
        ),
    )
    _check_disk(inputs, plan, statistics)
    if put_if_absent(inputs.folder / PLAN_NAME, document_bytes(plan)):
        return plan
    return load_document(inputs.folder / PLAN_NAME, Plan)


def _check_disk(inputs: Inputs, plan: Plan, statistics: StagedStatistics) -> None:
    needed = int(_cost(inputs, statistics).total * plan.tokens * _DISK_MARGIN)
    free = free_bytes(inputs.folder)
    if needed > free:
        raise ResourceError(
            f"the cache needs {needed / 1e9:,.3g} GB, {inputs.folder.parent} has {free / 1e9:,.3g} GB free; "
            "set cache.root to a larger disk, or lower the bytes a token (`eaglepipe estimate`)"
        )


def _cost(inputs: Inputs, statistics: StagedStatistics) -> TokenCost:
    kept = statistics.kept
    num_tokens = int(statistics.num_tokens[kept].sum(dtype=np.int64))
    num_supervised = int(statistics.num_supervised[kept].sum(dtype=np.int64))
    return token_cost(
        inputs.spec,
        supervised_share=num_supervised / num_tokens,
        tokens_per_sample=num_tokens / len(kept),
        entries=inputs.recipe.cache.max_entries,
    )


def _shards(inputs: Inputs, batch_tokens: int, statistics: StagedStatistics) -> list[list[Batch]]:
    kept = statistics.kept
    shards = plan_shards(
        statistics.num_tokens[kept],
        batch_tokens,
        shard_tokens=inputs.recipe.cache.shard_bytes / _cost(inputs, statistics).total,
        split_at=inputs.rope_split,
    )
    return [[kept[batch] for batch in shard] for shard in shards]
