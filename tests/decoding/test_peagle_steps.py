"""P-EAGLE's pass with a cache against the one that trains it: the same logits at every depth."""

import pytest
import torch

from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.decoding.eagle3_steps import PeagleSteps
from eaglepipe.decoding.strategies import ParallelDrafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.eagle.peagle_attention import peagle_mask
from tests.decoding.tiny_decoding import ChainedSteps, tiny_draft, tiny_stepping

DEPTH, LENGTH = 4, 9


OPTIONS = {"norm_before_fc": True, "norm_before_residual": True, "qk_norm": True}
WINDOWS = {"num_hidden_layers": 3, "sliding_window": 4, "full_attention_layers": (1,)}


@pytest.mark.parametrize(
    "settings", [{}, {"fc_norm": True, "norm_output": True}, {"num_hidden_layers": 3}, OPTIONS, WINDOWS]
)
@torch.no_grad()
def test_all_depths_behind_any_slot_are_those_of_the_training_pass(settings: dict[str, object]) -> None:
    draft = tiny_draft(tiny_stepping(), 16, parallel_drafting=True, mask_token_id=30, **settings)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(30, (2, LENGTH + 1), generator=generator)
    aux = torch.randn(2, LENGTH, 3, 32, generator=generator)
    steps = PeagleSteps(draft)
    steps.begin(2)
    ends = torch.tensor([0, 0])
    for counts in ([3, 5], [1, 2], [4, 1]):
        new = torch.tensor(counts)
        positions = ends[:, None] + torch.arange(int(new.max()))
        logits = steps.draft_all(
            VerifiedSlots(
                aux=torch.stack([aux[row, positions[row].clamp(max=LENGTH - 1)] for row in range(2)]),
                last_hidden=None,
                next_tokens=torch.stack([tokens[row, (positions[row] + 1).clamp(max=LENGTH)] for row in range(2)]),
                counts=new,
                sequences=(),
            ),
            DEPTH,
        )
        ends = ends + new
        for row in range(2):
            expected = trained(draft, aux[row, : ends[row]], tokens[row, 1 : ends[row] + 1])
            torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-5)


def trained(draft: object, aux: torch.Tensor, next_tokens: torch.Tensor) -> torch.Tensor:
    """Logits [K, D] of the newest slot's element at every depth, by the training forward."""
    num_slots = len(aux)
    anchor = torch.cat((torch.arange(num_slots), torch.full((DEPTH - 1,), num_slots - 1)))
    depth = torch.cat((torch.zeros(num_slots, dtype=torch.int64), torch.arange(1, DEPTH)))
    ids = torch.cat((next_tokens, torch.full((DEPTH - 1,), 30)))
    projected = draft.project_hidden_states(aux)
    hidden = torch.cat((projected, draft.masked_projected_hidden().expand(DEPTH - 1, -1)))
    total = num_slots + DEPTH
    mask = peagle_mask(anchor, depth, torch.tensor([total]), total)
    states = draft.forward_peagle(ids[None], hidden[None], (anchor + depth)[None], mask)
    return draft.compute_logits(states)[0, num_slots - 1 :]


@torch.no_grad()
def test_a_chained_head_follows_the_token_chosen_before_and_the_newest_at_first() -> None:
    draft = tiny_draft(tiny_stepping(), 16, parallel_drafting=True, mask_token_id=30)
    generator = torch.Generator().manual_seed(5)
    verified = VerifiedSlots(
        aux=torch.randn(2, 4, 3, 32, generator=generator),
        last_hidden=None,
        next_tokens=torch.tensor([[3, 4, 5, 9], [7, 8, 0, 0]]),
        counts=torch.tensor([4, 2]),
        sequences=(),
    )
    steps = ChainedSteps(draft)
    steps.begin(2)
    logits = steps.draft_all(verified, DEPTH)
    expected = []
    for row, newest in enumerate((9, 8)):
        chain = [newest]
        for depth in range(DEPTH):
            scores = logits[row, depth].clone()
            scores[(chain[-1] + depth) % 16] += 3.0
            chain.append(2 * int(scores.argmax()))
        expected.append(chain[1:])
    drafter = ParallelDrafter(steps, DEPTH, SamplingRule())
    drafter.begin(2)
    drafter.extend(verified)
    assert drafter.propose(generator).tokens.tolist() == expected
    drafter.select(torch.tensor([1]))
    assert drafter.propose(generator).tokens.tolist() == expected[1:]
