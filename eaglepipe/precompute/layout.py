"""The layout of a staged corpus: draft vocabulary, bytes a token, and the batches of each shard.

A pure function of the recipe and the staged tokens, so that every worker comes to the same shards.
"""

from dataclasses import dataclass

from eaglepipe.cache.token_cost import TokenCost, token_cost
from eaglepipe.precompute.batches import Batch, plan_shards
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.staging import StagedStatistics, StagedTokens
from eaglepipe.vocab import DraftVocab, build_draft_vocab


@dataclass(frozen=True, kw_only=True)
class CorpusLayout:
    """A corpus in shards: shard i is computed batch by batch from `shards[i]`, whose samples are in `tokens`."""

    tokens: StagedTokens
    statistics: StagedStatistics
    drops: dict[str, int]
    vocab: DraftVocab
    cost: TokenCost
    batch_tokens: int
    shards: list[list[Batch]]

    @property
    def estimated_bytes(self) -> int:
        """Bytes of all shards."""
        return int(self.cost.total * self.statistics.total_tokens)

    def shard_tokens(self, shard: int) -> int:
        """Count the tokens of a shard."""
        return sum(int(self.statistics.num_tokens[batch].sum()) for batch in self.shards[shard])


def lay_out(inputs: Stage1Inputs, tokens: StagedTokens, *, drops: dict[str, int], batch_tokens: int) -> CorpusLayout:
    """Choose the draft vocabulary and deal the corpus into batches and shards.

    Args:
        drops: samples that tokenising left out, by reason.
        batch_tokens: token budget of a batch.

    Raises:
        DataError: one id names two samples, or a token id is outside the target's vocabulary.
        VocabError: a draft vocabulary too small for the special tokens.
    """
    spec = inputs.spec
    statistics = tokens.statistics(spec.vocab_size)
    cost = token_cost(
        spec,
        supervised_share=statistics.total_supervised / statistics.total_tokens,
        tokens_per_sample=statistics.total_tokens / statistics.num_distinct,
        entries=inputs.recipe.cache.max_entries,
    )
    shards = plan_shards(
        statistics.num_tokens[statistics.distinct],
        batch_tokens,
        shard_tokens=inputs.recipe.cache.shard_bytes / cost.total,
        split_at=inputs.rope_split,
    )
    counts = {**drops, "duplicate": statistics.num_duplicates}
    return CorpusLayout(
        tokens=tokens,
        statistics=statistics,
        drops={reason: count for reason, count in sorted(counts.items()) if count},
        vocab=build_draft_vocab(statistics.token_counts, spec.draft_vocab_size, spec.vocab_size, inputs.special_ids),
        cost=cost,
        batch_tokens=batch_tokens,
        shards=[[statistics.distinct[batch] for batch in shard] for shard in shards],
    )
