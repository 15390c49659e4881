"""Counts over a corpus that prices depend on, in one pass and constant memory."""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.sources import iter_conversations
from eaglepipe.chat.tokens import TokenSample, iter_token_samples, supervised_tokens
from eaglepipe.precompute.answers.prompts import iter_prompts
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.precompute.staging import count_tokens
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
    """Tokenise the recipe's corpus and count; of prompts that are to be answered, the most tokens that there may be.

    Raises:
        DataError: no sample is left, too many rows are faulty, or samples are beyond the target's positions.
    """
    drops, data = DropLog(), inputs.recipe.data
    counts = np.zeros(inputs.spec.vocab_size, np.int64)
    samples = tokens = supervised = first_tokens = longer = longest = 0
    first: list[TokenSample] = []
    rows, limit = iter_conversations(data.sources), inputs.max_positions or sys.maxsize
    if data.generate is not None:
        return _count_prompts(inputs, drops)
    for sample in iter_token_samples(rows, inputs.chat, data, drops, inputs.spec.vocab_size):
        mask = supervised_tokens(sample.turns)
        samples, tokens, supervised = samples + 1, tokens + len(mask), supervised + int(mask.sum())
        longer, longest = longer + (len(mask) > limit), max(longest, len(mask))
        add_counts(counts, sample.input_ids[sample.turns > 0])
        if first_tokens < _FIRST_TOKENS and mask.any():
            first.append(sample)
            first_tokens += len(mask)
    inputs.check_lengths(samples, longer, longest)
    drops.check(samples, data.max_drop_fraction)
    return CorpusCounts(
        samples=samples,
        tokens=tokens,
        supervised_tokens=supervised,
        drops=dict(+drops.counts),
        token_counts=counts,
        first=tuple(first),
    )


def _count_prompts(inputs: Stage1Inputs, drops: DropLog) -> CorpusCounts:
    data, samples, tokens, supervised = inputs.recipe.data, 0, 0, 0
    for prompt in iter_prompts(iter_conversations(data.sources), inputs, drops):
        num_tokens, num_supervised = count_tokens(prompt)
        samples, tokens, supervised = samples + 1, tokens + num_tokens, supervised + num_supervised
    drops.check(samples, data.max_drop_fraction)
    return CorpusCounts(
        samples=samples,
        tokens=tokens,
        supervised_tokens=supervised,
        drops=dict(+drops.counts),
        token_counts=np.zeros(inputs.spec.vocab_size, np.int64),
        first=(),
    )
