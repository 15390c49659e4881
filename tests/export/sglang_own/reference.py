"""The inputs on which drafts are compared, and what the trained modules compute from them."""

from typing import Any

import torch

from tests.export.made_drafts import DEPTH, VOCAB, MadeTarget

STEPS, SLOTS = 3, 5


def inputs_of(target: MadeTarget) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return ids [T], and the states [T, Ht] of each boundary and of the final norm."""
    generator = torch.Generator().manual_seed(8)
    width = target.target_config["hidden_size"]
    states = [torch.randn(SLOTS, width, generator=generator) for _ in range(DEPTH + 2)]
    return torch.randint(VOCAB, (SLOTS,), generator=generator), states


@torch.no_grad()
def our_logits(draft: Any, target: MadeTarget) -> list[torch.Tensor]:
    """Logits [T, D] of each step, those of EAGLE-1/2 through the target's head."""
    ids, states = inputs_of(target)
    if not hasattr(draft, "project_hidden_states"):
        return _of_features(draft, target, ids[None], states[-1][None])
    aux = torch.cat([states[boundary] for boundary in target.aux_layer_ids], dim=-1)
    state, row, logits = draft.project_hidden_states(aux[None]), ids[None], []
    cache: list[list[torch.Tensor]] = [[] for _ in range(2 * draft.config.num_hidden_layers)]
    for _ in range(STEPS):
        state = draft(row, state, None, None, cache)
        logits.append(draft.compute_logits(state)[0])
        row = torch.cat([row[:, 1:], torch.zeros(1, 1, dtype=row.dtype)], dim=1)
    return logits


def _of_features(draft: Any, target: MadeTarget, row: torch.Tensor, features: torch.Tensor) -> list[torch.Tensor]:
    readable = torch.ones(SLOTS, SLOTS, dtype=torch.bool).tril()[None, None]
    chains: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in draft.layers]
    logits = []
    for _ in range(STEPS):
        features = draft.forward_chain(row, features, readable, torch.arange(SLOTS)[None], chains)
        logits.append(features[0] @ target.head.T)
        row = torch.cat([row[:, 1:], torch.zeros(1, 1, dtype=row.dtype)], dim=1)
    return logits


def differs(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Return whether logits are not the same to 1e-5."""
    return any(
        a.shape != b.shape or not torch.allclose(a, b, atol=1e-5, rtol=1e-5)
        for a, b in zip(actual, expected, strict=True)
    )


def kept(logits: list[torch.Tensor]) -> list[list[float]]:
    """The last slot's first logits of each step, to be written down."""
    return [[round(value, 6) for value in step[-1, :5].tolist()] for step in logits]
