"""Costs of documents, from metadata alone; each objective adds up the parts that its work consists of.

The unit is a token's context, which every draft of aux states computes: their projection, and the first layer's keys
and values. Figures are products of Llama-3.1-8B's drafts, with 32,000 tokens where the vocabulary is the draft's own.
Forward and backward cost in the same proportions.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.types import SampleIndex

Costs = NDArray[np.float64]
"""One number for each document, [N]."""

_BLOCK = 2**20  # samples whose costs are computed at once, for the temporary arrays

LOSS_COST = 5.2
"""A slot with a loss: keys, values and queries of a carried state, MLP, and the head. With 512 and 8,192: 5.4."""

LAYER_COST = 3.25
"""A slot in a plain layer: queries, keys, values and MLP."""

KEY_COST = 0.25
"""Keys and values of a fused layer without the projection of aux states."""

FUSE_COST = 0.5
"""EAGLE-1's projection of a token's embedding and feature."""

FULL_HEAD_COST = 7.8
"""The head over all 128,256 tokens of the target."""

PAIR_COST = 1.2e-4
"""One query on one key; a 512-wide draft with 64-wide heads has 8e-4."""


def blockwise_costs(costs_of: Callable[[SampleIndex], Costs], index: SampleIndex) -> Costs:
    """Return the costs of all samples, of whose index `costs_of` is given the counts of a block at a time."""
    costs = np.empty(len(index.num_tokens), np.float64)
    for start in range(0, len(costs), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = replace(
            index,
            sample_ids=(),
            num_tokens=index.num_tokens[part],
            num_supervised=index.num_supervised[part],
            source_of=index.source_of[part],
            weights=None,
            conversation_hashes=None,
        )
        costs[part] = costs_of(block)
    return costs


def draft_costs(*, num_keys: Costs, contexts: Costs, losses: Costs, inner: Costs, num_layers: int) -> Costs:
    """Return the cost of documents to a draft of aux states.

    Args:
        num_keys: keys that each query reads, at most.
        contexts: slots whose aux states are projected.
        losses: slots that go through the last layer and the head.
        inner: slots that go through each layer before the last.
    """
    attention = PAIR_COST * num_keys
    return contexts + losses * (LOSS_COST + attention) + (num_layers - 1) * inner * (LAYER_COST + attention)
