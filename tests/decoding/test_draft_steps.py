"""A draft stepped with a cache against the unroll that trains it: the same logits at every slot and step."""

import pytest
import torch

from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.decoding.eagle3_steps import Eagle3Steps
from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel
from tests.decoding.tiny_decoding import tiny_draft, tiny_stepping

DEPTH, LENGTH = 4, 12


def unrolled(draft: LlamaEagle3DraftModel, aux: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Logits [T, D] of every step of TTT over slots that hold aux[t] and token t+1, as training unrolls it.

    A window counts positions here: depth k of slot t, at position t + k, reads k slots fewer at the far end.
    """
    ids = tokens[None, 1:]
    state, cache = draft.project_hidden_states(aux[None]), [[] for _ in range(2 * len(draft.model.layers))]
    window, logits = draft.config.sliding_window if hasattr(draft.config, "sliding_window") else None, []
    for step in range(DEPTH):
        draft.config.sliding_window = window and window - step
        state = draft(ids, state, cache_hidden=cache)
        logits.append(draft.compute_logits(state)[0])
        ids = torch.cat((ids[:, 1:], torch.zeros_like(ids[:, :1])), dim=1)
    draft.config.sliding_window = window
    return logits


OPTIONS = {"norm_before_fc": True, "norm_before_residual": True, "qk_norm": True}
WINDOWS = {"sliding_window": 6, "full_attention_layers": (1,), "num_hidden_layers": 3}


@pytest.mark.parametrize(
    "settings", [{}, {"fc_norm": True, "norm_output": True}, {"num_hidden_layers": 2}, OPTIONS, WINDOWS]
)
@torch.no_grad()
def test_a_chain_from_any_slot_gives_the_logits_of_the_unroll(settings: dict[str, object]) -> None:
    draft = tiny_draft(tiny_stepping(), 16, **settings)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(31, (2, LENGTH + DEPTH + 1), generator=generator)
    aux = torch.randn(2, LENGTH + DEPTH, 3, 32, generator=generator)
    expected = [unrolled(draft, aux[row], tokens[row]) for row in range(2)]
    steps = Eagle3Steps(draft)
    steps.begin(2)
    ends = torch.tensor([0, 0])
    for counts in ([3, 5], [1, 2], [4, 1]):
        new = torch.tensor(counts)
        positions = ends[:, None] + torch.arange(int(new.max()))
        state, logits = steps.extend(
            VerifiedSlots(
                aux=torch.stack([aux[row, positions[row]] for row in range(2)]),
                last_hidden=None,
                next_tokens=torch.stack([tokens[row, positions[row] + 1] for row in range(2)]),
                counts=new,
                sequences=(),
            )
        )
        ends = ends + new
        state, logits = state[:, None], logits[:, None]
        for depth in range(1, DEPTH):
            for row in range(2):
                torch.testing.assert_close(
                    logits[row, 0], expected[row][depth - 1][ends[row] - 1], rtol=1e-4, atol=1e-5
                )
            guesses = torch.stack([tokens[row, ends[row] + depth] for row in range(2)])[:, None]
            state, logits = steps.step(guesses, state, torch.ones(2, 1, depth, dtype=torch.bool), depth)


@torch.no_grad()
def test_guesses_on_other_branches_of_a_tree_are_not_read() -> None:
    draft = tiny_draft(tiny_stepping(), 16)
    generator = torch.Generator().manual_seed(6)
    aux, tokens = torch.randn(1, 5, 3, 32, generator=generator), torch.randint(31, (1, 5), generator=generator)
    verified = VerifiedSlots(aux=aux, last_hidden=None, next_tokens=tokens, counts=torch.tensor([5]), sequences=())

    def stepped(branches: list[int]) -> torch.Tensor:
        """Logits after two levels whose first level is these tokens; the second grows from the first of them."""
        steps = Eagle3Steps(draft)
        steps.begin(1)
        state, _ = steps.extend(verified)
        width = len(branches)
        own = torch.eye(width, dtype=torch.bool)[None]
        states, _ = steps.step(torch.tensor([branches]), state[:, None].expand(-1, width, -1), own, 1)
        visible = torch.zeros(1, 1, width + 1, dtype=torch.bool)
        visible[..., 0] = visible[..., -1] = True
        return steps.step(torch.tensor([[7]]), states[:, :1], visible, 2)[1]

    torch.testing.assert_close(stepped([4, 9, 11]), stepped([4]), rtol=1e-5, atol=1e-6)
