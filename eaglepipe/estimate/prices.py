"""`eaglepipe estimate`: the cost of a recipe's corpus in each profile, before anything is computed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from eaglepipe.cache.schema import token_cost
from eaglepipe.cache.storage import cache_root
from eaglepipe.cache.supervision.kind import KINDS, EntryRule, entry_rule, stored_codec
from eaglepipe.cache.supervision.sparse import SparseRule
from eaglepipe.estimate.corpus_counts import count_corpus
from eaglepipe.estimate.entries import measure_entries
from eaglepipe.estimate.table import cost_table
from eaglepipe.files.publish import free_bytes
from eaglepipe.precompute.inputs import read_stage1_inputs, spec_settings
from eaglepipe.precompute.layout import forward_seconds
from eaglepipe.recipe.config import PROFILES, CacheConfig
from eaglepipe.recipe.tree import Recipe

DISK_BYTES_PER_SECOND = 1e9


@dataclass(frozen=True, kw_only=True)
class EncodingCost:
    """One way to encode the corpus."""

    name: str  # a profile, `recipe` for settings that are none, or `sampled` or `dense` for comparison
    supervision: str
    supervision_codec: str
    aux_codec: str
    entries: float | None  # of a supervised token, with sparse or sampled supervision
    chosen: bool  # the recipe's own
    bytes_per_token: float
    by_column: dict[str, float]
    total_bytes: int
    precompute_seconds: float
    epochs_to_pay: int | None  # None: reading takes longer than computing again


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """The corpus and the cost of each encoding of it."""

    samples: int
    tokens: int
    supervised_tokens: int
    drops: dict[str, int]
    forward_seconds: float
    free_bytes: int
    disk_bytes_per_second: float
    entries_from: str  # measured | given | limit
    encodings: tuple[EncodingCost, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> str:
        return cost_table(self.to_json())


def estimate_recipe(
    recipe: Recipe,
    *,
    entries: float | None = None,
    measure: bool = False,
    disk_bytes_per_second: float = DISK_BYTES_PER_SECOND,
) -> CostReport:
    """Tokenise the corpus, count, and price every profile.

    Args:
        entries: mean entries of a supervised token with sparse supervision; default: `cache.max_entries`, the most.
        measure: load the target and measure `entries` on the first samples.
        disk_bytes_per_second: of the disk under the cache.

    Raises:
        EaglepipeError: whatever `precompute` would refuse before its first forward.
    """
    inputs = read_stage1_inputs(recipe)
    counts = count_corpus(inputs)
    seconds = forward_seconds(inputs, counts.tokens)
    settings = _settings(recipe)
    rules = {name: _rule(cache, inputs.end_of_turn) for name, cache in settings.items()}
    asked = [rule for rule in rules.values() if rule is not None]
    measured = measure_entries(inputs, counts, asked) if measure else {}
    sparse = [rule for rule in asked if isinstance(rule, SparseRule)]
    declared: dict[EntryRule, float] = {} if entries is None else dict.fromkeys(sparse, entries)
    costs = []
    for name, cache in settings.items():
        spec = replace(inputs.spec, **spec_settings(cache))
        mean_entries = _entries(rules[name], {**measured, **declared}, spec.draft_vocab_size)
        cost = token_cost(
            spec,
            supervised_share=counts.supervised_share,
            tokens_per_sample=counts.tokens_per_sample,
            entries=mean_entries or 0.0,
        )
        transfer_seconds = cost.total * counts.tokens / disk_bytes_per_second
        costs.append(
            EncodingCost(
                name=name,
                supervision=spec.supervision,
                supervision_codec=spec.supervision_codec,
                aux_codec=spec.aux_codec,
                entries=mean_entries,
                chosen=_stored(cache) == _stored(recipe.cache),
                bytes_per_token=cost.total,
                by_column=cost.by_column,
                total_bytes=int(cost.total * counts.tokens),
                precompute_seconds=max(seconds, transfer_seconds),
                epochs_to_pay=epochs_to_pay(seconds, transfer_seconds),
            )
        )
    return CostReport(
        samples=counts.samples,
        tokens=counts.tokens,
        supervised_tokens=counts.supervised_tokens,
        drops=counts.drops,
        forward_seconds=seconds,
        free_bytes=free_bytes(cache_root(recipe)),
        disk_bytes_per_second=disk_bytes_per_second,
        entries_from="given" if declared else "measured" if measured else "limit",
        encodings=tuple(costs),
    )


def _settings(recipe: Recipe) -> dict[str, CacheConfig]:
    """Return the profiles, two kinds of supervision for comparison, and the recipe's own settings if they are none."""
    named = {name: CacheConfig.model_validate({"profile": name}) for name in PROFILES}
    named["sampled"] = CacheConfig.model_validate({"profile": "tiny", "supervision": "sampled"})
    named["dense"] = CacheConfig(profile=None, supervision="dense", aux_codec="bf16")
    if _stored(recipe.cache) not in map(_stored, named.values()):
        named = {"recipe": recipe.cache, **named}
    return named


def _stored(cache: CacheConfig) -> tuple[object, ...]:
    """Return the settings that decide the bytes of a token."""
    settings = [getattr(cache, name) for name in KINDS[cache.supervision].settings]
    return cache.aux_codec, cache.supervision, stored_codec(cache), cache.last_hidden, *settings


def _rule(cache: CacheConfig, end_of_turn: int | None) -> EntryRule | None:
    return entry_rule(cache, end_of_turn=end_of_turn) if KINDS[cache.supervision].settings else None


def _entries(rule: EntryRule | None, known: Mapping[EntryRule, float], draft_size: int) -> float | None:
    if rule is None:
        return None
    return float(min(known.get(rule, rule.max_entries), rule.max_entries, draft_size))


def epochs_to_pay(forward: float, transfer: float) -> int | None:
    """Return the fewest epochs n with `max(forward, transfer) + n · transfer < n · forward`, seconds; None if none."""
    if transfer >= forward:
        return None
    return math.floor(max(forward, transfer) / (forward - transfer)) + 1
