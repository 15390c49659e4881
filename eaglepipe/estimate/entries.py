"""How many entries sparse supervision keeps on average, by running the target over the corpus' first samples."""

from collections.abc import Sequence

import numpy as np
import torch

from eaglepipe.cache.supervision.sparse import SparseRule, forced_targets
from eaglepipe.chat.types import supervised_tokens
from eaglepipe.estimate.corpus_counts import CorpusCounts
from eaglepipe.precompute.inputs import Inputs
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.supervision import SparseRequest, supervise
from eaglepipe.vocab import build_draft_vocab


@torch.no_grad()
def measure_entries(inputs: Inputs, counts: CorpusCounts, rules: Sequence[SparseRule]) -> dict[SparseRule, float]:
    """Mean entries of a supervised token under each rule.

    Raises:
        EaglepipeError: the target cannot be loaded.
    """
    recipe = inputs.recipe
    target = load_target(recipe.target, recipe.precompute.device)
    model = HFEagle3TargetModel(target, inputs.spec.aux_layer_ids)
    special = inputs.chat.special_ids() if inputs.chat else ()
    end_of_turn = inputs.chat.end_of_turn if inputs.chat else None
    vocab = build_draft_vocab(counts.token_counts, recipe.vocab.draft_size, inputs.spec.vocab_size, special)
    kept = dict.fromkeys(rules, 0)
    num_rows = 0
    for sample in counts.first:
        supervised = supervised_tokens(sample.turns)
        input_ids = torch.from_numpy(sample.input_ids).long()[None].to(model.target.device)
        rows = model.capture(input_ids, torch.ones_like(input_ids)).last_hidden[0, np.flatnonzero(supervised)]
        forced = torch.from_numpy(forced_targets(sample.input_ids, supervised, end_of_turn))
        num_rows += rows.shape[0]
        for rule in kept:
            request = SparseRequest(rule=rule, forced=forced)
            chunk_rows = recipe.precompute.head_chunk_rows
            found = supervise(model.head_logits, rows, vocab, chunk_rows, keep_probs=False, sparse=request).sparse
            assert found is not None
            kept[rule] += len(found.ids)
    return {rule: total / max(1, num_rows) for rule, total in kept.items()}
