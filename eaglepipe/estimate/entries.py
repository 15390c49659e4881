"""How many entries sparse supervision keeps on average, by running the target over the corpus' first samples."""

from collections.abc import Sequence

import numpy as np
import torch

from eaglepipe.cache.supervision.sparse import SparseRule, forced_targets
from eaglepipe.chat.types import supervised_tokens
from eaglepipe.estimate.corpus_counts import CorpusCounts
from eaglepipe.precompute.inputs import Stage1Inputs
from eaglepipe.target.capture import load_target_model
from eaglepipe.target.supervision import SparseRequest, supervise
from eaglepipe.vocab import build_draft_vocab


@torch.no_grad()
def measure_entries(inputs: Stage1Inputs, counts: CorpusCounts, rules: Sequence[SparseRule]) -> dict[SparseRule, float]:
    """Mean entries of a supervised token under each rule.

    Raises:
        EaglepipeError: the target cannot be loaded.
    """
    recipe = inputs.recipe
    model = load_target_model(recipe.target, inputs.spec.aux_layer_ids, recipe.precompute.device)
    vocab = build_draft_vocab(counts.token_counts, recipe.vocab.draft_size, inputs.spec.vocab_size, inputs.special_ids)
    num_entries = dict.fromkeys(rules, 0)
    num_rows = 0
    for sample in counts.first:
        supervised = supervised_tokens(sample.turns)
        rows = model.capture_tokens([sample.input_ids]).last_hidden[np.flatnonzero(supervised)]
        forced = torch.from_numpy(forced_targets(sample.input_ids, supervised, inputs.end_of_turn))
        num_rows += rows.shape[0]
        for rule in num_entries:
            request = SparseRequest(rule=rule, forced=forced)
            chunk_rows = recipe.precompute.head_chunk_rows
            sparse = supervise(model.head_logits, rows, vocab, chunk_rows, keep_probs=False, sparse=request).sparse
            assert sparse is not None
            num_entries[rule] += len(sparse.ids)
    return {rule: total / max(1, num_rows) for rule, total in num_entries.items()}
