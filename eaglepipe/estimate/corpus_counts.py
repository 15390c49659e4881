"""Counts over a corpus that prices depend on, in one pass and constant memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.sources import iter_conversations
from eaglepipe.chat.tokens import DropCounts, TokenSample, iter_token_samples, supervised_tokens
from eaglepipe.errors import DataError
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.vocab import add_counts

_FIRST_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class CorpusCounts:
    """Totals of a corpus, and its first samples with supervised tokens."""

    samples: int
    tokens: int
    supervised_tokens: int
    drops: dict[str, int]
    token_counts: NDArray[np.int64]  # [V] assistant tokens by id
    first: tuple[TokenSample, ...]

    @property
    def supervised_share(self) -> float:
        return self.supervised_tokens / self.tokens

    @property
    def tokens_per_sample(self) -> float:
        return self.tokens / self.samples


def count_corpus(inputs: Stage1Inputs) -> CorpusCounts:
    """Tokenise the recipe's corpus and count.

    Raises:
        DataError: no sample is left.
    """
    drops, data = DropCounts(), inputs.recipe.data
    counts = np.zeros(inputs.spec.vocab_size, np.int64)
    samples = tokens = supervised = first_tokens = 0
    first: list[TokenSample] = []
    for sample in iter_token_samples(iter_conversations(data.sources), inputs.chat, data, drops):
        mask = supervised_tokens(sample.turns)
        samples, tokens, supervised = samples + 1, tokens + len(mask), supervised + int(mask.sum())
        add_counts(counts, sample.input_ids[sample.turns > 0])
        if first_tokens < _FIRST_TOKENS and mask.any():
            first.append(sample)
            first_tokens += len(mask)
    if samples == 0:
        raise DataError(f"no sample is left; dropped: {dict(drops)}")
    return CorpusCounts(
        samples=samples,
        tokens=tokens,
        supervised_tokens=supervised,
        drops={reason: count for reason, count in drops.items() if count},
        token_counts=counts,
        first=tuple(first),
    )
