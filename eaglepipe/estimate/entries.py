"""Mean entries of sparse or sampled supervision, measured by running the target over the corpus' first samples."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from eaglepipe.cache.supervision.columns import NUM_ENTRIES, Columns
from eaglepipe.cache.supervision.kind import EntryRule
from eaglepipe.chat.tokens import supervised_tokens
from eaglepipe.errors import ConfigError
from eaglepipe.estimate.corpus_counts import CorpusCounts
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.target.capture import load_target_model
from eaglepipe.target.supervision import supervise
from eaglepipe.vocab import build_draft_vocab


@torch.no_grad()
def measure_entries(inputs: Stage1Inputs, counts: CorpusCounts, rules: Sequence[EntryRule]) -> dict[EntryRule, float]:
    """Measure the mean entries of a supervised token under each rule.

    Raises:
        EaglepipeError: the target cannot be loaded.
        ConfigError: the target is yet to answer the prompts.
    """
    recipe = inputs.recipe
    if recipe.data.generate is not None:
        raise ConfigError(
            "--measure needs answers, and data.generate has not made them yet; give --entries, or leave it out for the "
            "most that cache.max_entries or cache.draws allows"
        )
    model = load_target_model(recipe.target, inputs.spec.aux_layer_ids, recipe.precompute.device)
    vocab = build_draft_vocab(counts.token_counts, recipe.vocab.draft_size, inputs.spec.vocab_size, inputs.special_ids)
    num_entries = dict.fromkeys(rules, 0)
    num_rows = 0
    for sample in counts.first:
        supervised = supervised_tokens(sample.turns)
        rows = model.capture_tokens([sample.input_ids]).last_hidden[np.flatnonzero(supervised)]
        draft_ids = vocab.selected_token_ids.to(rows.device)
        num_rows += rows.shape[0]
        for rule in num_entries:
            hints = torch.from_numpy(rule.hints(sample.sample_id, sample.input_ids, supervised)).to(rows.device)
            encode = partial(_count_entries, hints=rule.located(hints, draft_ids), rule=rule)
            answers = supervise(model.narrow_logits, rows, vocab, recipe.precompute.head_chunk_rows, encode=encode)
            num_entries[rule] += int(answers.columns[NUM_ENTRIES].sum())
    return {rule: total / max(1, num_rows) for rule, total in num_entries.items()}


def _count_entries(probs: torch.Tensor, rows: slice, *, hints: torch.Tensor, rule: EntryRule) -> Columns:
    return {NUM_ENTRIES: rule.cut(probs, hints[rows]).counts}
