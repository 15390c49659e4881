"""The layout of a staged corpus: draft vocabulary, bytes a token, and the groups of samples of each shard.

Groups are sorted by length, each of `GROUP_TOKENS` at most. All of it is a pure function of the fields of the identity
and of the staged tokens: no worker, device or token budget changes which samples a shard holds, or their order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig

from eaglepipe.cache.schema import TokenCost, token_cost
from eaglepipe.chat.drops import DropLog
from eaglepipe.devices import auto_dtype, matmul_rate, resolve_device
from eaglepipe.errors import DataError
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.staging import StagedStatistics, StagedTokens
from eaglepipe.vocab import DraftVocab, build_draft_vocab

GROUP_TOKENS = 16_384
"""Tokens of a group, with padding. Caches of one identity are laid out by it: another value is another order."""
MOST_ITEMS = 2**31 - 1
"""Items of one sample in a list column of the cache."""
_SIMILAR = 0.95  # of the longest row's length: a group filled with such rows wastes about 2.5%
_FORWARD_EFFICIENCY = 0.5  # of the matrix-product rate, as a whole forward of a transformer usually reaches
_WORTHWHILE = 0.25  # of a group's tokens: smaller forwards cost more than the padding they save

Group = NDArray[np.int64]
"""Numbers of samples that lie together in a shard, longest first; one forward computes all or a part of them."""


@dataclass(frozen=True, kw_only=True)
class CorpusLayout:
    """A corpus in shards: shard i holds the samples of `shards[i]`, group by group; they are in `tokens`.

    Of prompts that the target is to answer, token counts are the most that there may be, and the vocabulary, unless it
    has all tokens, is chosen later.
    """

    tokens: StagedTokens
    statistics: StagedStatistics
    drops: DropLog
    vocab: DraftVocab
    cost: TokenCost
    group_tokens: int
    shards: list[list[Group]]

    @property
    def estimated_bytes(self) -> int:
        """Bytes of all shards."""
        return int(self.cost.total * self.statistics.total_tokens)

    def forwards(self, shard: int, batch_tokens: int) -> Iterator[Group]:
        """Yield the samples of a shard in order, in batches of `batch_tokens` with padding, or of a longer sample."""
        for group in self.shards[shard]:
            yield from self.parts(group, batch_tokens)

    def parts(self, group: Group, batch_tokens: int) -> Iterator[Group]:
        """Yield a group in batches of that budget."""
        return split_group(group, self.statistics.num_tokens, batch_tokens)

    def shard_tokens(self, shard: int) -> int:
        """Count the tokens of a shard."""
        return sum(int(self.statistics.num_tokens[group].sum()) for group in self.shards[shard])


def lay_out(
    inputs: Stage1Inputs, tokens: StagedTokens, *, drops: DropLog, group_tokens: int = GROUP_TOKENS
) -> CorpusLayout:
    """Choose the draft vocabulary and deal the corpus into groups and shards.

    Args:
        drops: rows that tokenising left out; repetitions are added.
        group_tokens: tokens of a group; another value only for a plan that was begun with it.

    Raises:
        DataError: too many faulty rows, samples beyond the target's positions, or token ids outside its vocabulary.
        VocabError: a draft vocabulary too small for the special tokens.
    """
    spec = inputs.spec
    statistics = tokens.statistics(spec.vocab_size)
    _drop_repetitions(tokens, statistics, drops)
    if inputs.recipe.data.generate is None:
        _check_lengths(inputs, statistics)
    _check_lists(inputs, statistics)
    drops.check(statistics.num_distinct, inputs.recipe.data.max_drop_fraction)
    cost = token_cost(
        spec,
        supervised_share=statistics.total_supervised / statistics.total_tokens,
        tokens_per_sample=statistics.total_tokens / statistics.num_distinct,
        entries=inputs.entry_rule.max_entries,
    )
    shards = plan_shards(
        statistics.num_tokens[statistics.distinct],
        group_tokens,
        shard_tokens=inputs.recipe.cache.shard_bytes / cost.total,
        split_at=inputs.rope_split,
    )
    return CorpusLayout(
        tokens=tokens,
        statistics=statistics,
        drops=drops,
        vocab=build_draft_vocab(statistics.token_counts, spec.draft_vocab_size, spec.vocab_size, inputs.special_ids),
        cost=cost,
        group_tokens=group_tokens,
        shards=[[statistics.distinct[group] for group in shard] for shard in shards],
    )


def _check_lengths(inputs: Stage1Inputs, statistics: StagedStatistics) -> None:
    lengths = statistics.num_tokens[statistics.distinct]
    num_longer = 0 if inputs.max_positions is None else int((lengths > inputs.max_positions).sum())
    inputs.check_lengths(len(lengths), num_longer, int(lengths.max()))


def _check_lists(inputs: Stage1Inputs, statistics: StagedStatistics) -> None:
    """Check that each sample's probabilities fit one list column, whose offsets are int32."""
    spec, longest = inputs.spec, int(statistics.num_supervised[statistics.distinct].max(initial=0))
    most = inputs.entry_rule.max_entries
    widths = {"dense": spec.draft_vocab_size, "sparse": most, "sampled": most}
    width = widths.get(spec.supervision, 1)
    if longest * width > MOST_ITEMS:
        raise DataError(
            f"a sample has {longest} supervised tokens of up to {width} probabilities each, more than a cache can hold "
            f"of one sample ({MOST_ITEMS // width} such tokens); set cache.supervision to hidden, or data.max_length "
            "lower"
        )


def _drop_repetitions(tokens: StagedTokens, statistics: StagedStatistics, drops: DropLog) -> None:
    reasons = (
        ("duplicate", statistics.duplicates, "the same as an earlier sample"),
        ("repeated_id", statistics.conflicts, "names 2 different samples, this one and an earlier one"),
    )
    for reason, numbers, event in reasons:
        del drops.counts[reason]  # of the run that is resumed
        for number in numbers.tolist():
            sample = tokens.read(number)
            where = f"sample id {sample.sample_id!r}"
            drops.add(reason, where=where, source=sample.source, detail=event)


def plan_groups(lengths: NDArray[np.integer], group_tokens: int, split_at: int | None = None) -> list[Group]:
    """Sample indices of each group; every sample is in exactly one.

    Args:
        lengths: tokens of each sample [N].
        group_tokens: rows times longest row never exceed it, except for a sample alone in its group.
        split_at: samples longer than this never share a group with others not longer (see `Stage1Inputs.rope_split`).
    """
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    num_long = 0 if split_at is None else int((lengths > split_at).sum())
    parts = longest_first[:num_long], longest_first[num_long:]
    return [group for part in parts for group in _fill(part, lengths, group_tokens)]


def plan_shards(
    lengths: NDArray[np.integer], group_tokens: int, *, shard_tokens: float, split_at: int | None = None
) -> list[list[Group]]:
    """The groups of `plan_groups`, dealt into shards of up to `shard_tokens` real tokens, at least one group each.

    They are dealt in a fixed shuffled order, so that any shard is a fair sample of the corpus; the longest group stays
    first, where a budget that the device cannot hold fails at once.
    """
    groups = plan_groups(lengths, group_tokens, split_at)
    shuffled = np.random.default_rng(0).permutation(len(groups) - 1) + 1
    shards: list[list[Group]] = []
    room = 0.0
    for number in [0, *shuffled.tolist()]:
        num_tokens = int(lengths[groups[number]].sum())
        if not shards or num_tokens > room:
            shards.append([])
            room = shard_tokens
        shards[-1].append(groups[number])
        room -= num_tokens
    return shards


def split_group(group: Group, lengths: NDArray[np.integer], batch_tokens: int) -> Iterator[Group]:
    """Yield a group in parts of as many samples as fit the token budget of a forward, at least one, in order."""
    start = 0
    while start < len(group):
        rows = max(1, batch_tokens // max(1, int(lengths[group[start]])))  # the longest of the rest
        yield group[start : start + rows]
        start += rows


def _fill(ordered: NDArray[np.int64], lengths: NDArray[np.integer], group_tokens: int) -> list[Group]:
    """Full groups; one worth a forward may end early, where rows get much shorter than its longest."""
    descending = lengths[ordered].astype(np.int64)
    groups = []
    start = 0
    while start < len(ordered):
        longest = max(1, int(descending[start]))
        similar = int(np.searchsorted(-descending, -longest * _SIMILAR, side="right")) - start
        worthwhile = int(group_tokens * _WORTHWHILE) // longest
        rows = max(1, min(group_tokens // longest, max(similar, worthwhile)))
        groups.append(ordered[start : start + rows])
        start += rows
    return groups


def forward_seconds(inputs: Stage1Inputs, num_tokens: int) -> float:
    """Estimate the seconds of forward on one device: 2 FLOP a parameter and token, idle MoE experts left out."""
    target, config = inputs.recipe.target, inputs.text_config
    device = resolve_device(inputs.recipe.precompute.device)
    parameters = inputs.num_parameters * _active_share(config)
    dtype = getattr(torch, target.dtype if target.dtype != "auto" else _own_dtype(config))
    return 2 * parameters * num_tokens / (_FORWARD_EFFICIENCY * _product_rate(device, dtype))


@cache
def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of products on this device, measured once a process and no longer than an estimate needs."""
    return matmul_rate(device, dtype, seconds=0.1)


def faster_dtype(inputs: Stage1Inputs) -> str | None:
    """Return a note if the target computes in its checkpoint's own dtype and this device is faster in another."""
    if inputs.recipe.target.dtype != "auto":
        return None
    own, (fast, reason) = _own_dtype(inputs.text_config), auto_dtype(resolve_device(inputs.recipe.precompute.device))
    if {own, fast} != {"float32", "bfloat16"}:
        return None
    return f"{own}, the checkpoint's own; target.dtype={fast} makes another cache, faster here ({reason})"


def _own_dtype(config: PretrainedConfig) -> str:
    return str(config.dtype or "float32").removeprefix("torch.")


def _active_share(config: object) -> float:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts, active = (
        next((count for name in fields if isinstance(count := getattr(config, name, None), int) and count > 0), None)
        for fields in (names, ("num_experts_per_tok",))
    )
    return min(1.0, active / experts) if experts and active else 1.0
