"""An EAGLE-1 draft stepped with a cache against the chain that its training follows: the same states and logits."""

import pytest
import torch

from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.decoding.eagle1_steps import Eagle1Steps
from eaglepipe.eagle.draft_config import draft_config_from_target
from eaglepipe.eagle.draft_llama_v12 import LlamaEagleDraftModel
from eaglepipe.errors import EaglepipeError
from eaglepipe.target_head import HeadSpec
from tests.decoding.tiny_decoding import tiny_stepping

DEPTH, LENGTH, VOCAB, HIDDEN = 4, 12, 31, 32


def random_draft(num_layers: int, *, has_norms: bool = False) -> LlamaEagleDraftModel:
    config = draft_config_from_target(tiny_stepping().target.text_config, num_hidden_layers=num_layers)
    config.update({"input_norm": has_norms, "final_norm": has_norms})
    torch.manual_seed(4)
    draft = LlamaEagleDraftModel(config).float().eval()
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return draft


@pytest.mark.parametrize(("num_layers", "has_norms"), [(1, False), (2, False), (1, True)])
@torch.no_grad()
def test_a_chain_from_any_slot_gives_the_logits_of_the_trained_chain(num_layers: int, has_norms: bool) -> None:
    draft = random_draft(num_layers, has_norms=has_norms)
    assert ("norm.weight" in draft.state_dict()) == has_norms
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCAB, (2, LENGTH + DEPTH + 1), generator=generator)
    features = torch.randn(2, LENGTH + DEPTH, HIDDEN, generator=generator)
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    expected = [trained(draft, features[row], tokens[row]) for row in range(2)]
    steps = Eagle1Steps(draft, {"lm_head_full.weight": head}, HeadSpec(logit_scale=0.5, soft_cap=3.0))
    steps.begin(2)
    ends = torch.tensor([0, 0])
    for counts in ([3, 5], [1, 2], [4, 1]):
        new = torch.tensor(counts)
        positions = ends[:, None] + torch.arange(int(new.max()))
        state, logits = steps.extend(
            VerifiedSlots(
                aux=torch.empty(2, 0),
                last_hidden=torch.stack([features[row, positions[row]] for row in range(2)]),
                next_tokens=torch.stack([tokens[row, positions[row] + 1] for row in range(2)]),
                counts=new,
                sequences=(),
            )
        )
        ends = ends + new
        state, logits = state[:, None], logits[:, None]
        for depth in range(1, DEPTH):
            for row in range(2):
                logits_of_chain = 3.0 * torch.tanh(0.5 * expected[row][depth - 1][ends[row] - 1] @ head.T / 3.0)
                torch.testing.assert_close(logits[row, 0], logits_of_chain, rtol=1e-4, atol=1e-5)
            guesses = torch.stack([tokens[row, ends[row] + depth] for row in range(2)])[:, None]
            state, logits = steps.step(guesses, state, torch.ones(2, 1, depth, dtype=torch.bool), depth)


def test_a_cache_without_the_whole_head_is_refused() -> None:
    with pytest.raises(EaglepipeError, match=r"cache\.full_head=true"):
        Eagle1Steps(random_draft(1), {}, HeadSpec())


def trained(draft: LlamaEagleDraftModel, features: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """States [T, H] at every depth, as the module that trains the draft follows the chain."""
    num_slots = len(features)
    ids, state = tokens[None, 1:], features[None]
    readable = torch.ones(num_slots, num_slots, dtype=torch.bool).tril()[None, None]
    chains: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in draft.layers]
    states = []
    for _ in range(DEPTH):
        state = draft.forward_chain(ids, state, readable, torch.arange(num_slots)[None], chains)
        states.append(state[0])
        ids = torch.cat((ids[:, 1:], torch.zeros_like(ids[:, :1])), dim=1)
    return states
