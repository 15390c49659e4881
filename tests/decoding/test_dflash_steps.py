"""A block drafted behind a cache against the draft's own dense forward over everything: the same logits."""

from dataclasses import dataclass

import pytest
import torch

from eaglepipe.decoding.dflash_steps import DflashSteps
from eaglepipe.decoding.drafters import VerifiedSlots
from eaglepipe.eagle.dflash.draft import DFlashDraftModel
from eaglepipe.eagle.dflash.visibility import DenseVisibility
from tests.decoding.tiny_decoding import tiny_block_draft, tiny_stepping

LENGTH = 12
MIXED = {"sliding_window": 6, "full_attention_layers": (1,)}


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineVisibility(DenseVisibility):
    """One block behind its whole context, in which windows count positions, as engines do."""

    def dense(self) -> torch.Tensor:
        keys = torch.arange(self.num_context + self.width)
        distance = torch.arange(self.num_context, self.num_context + self.width)[:, None] - keys
        if self.window is None:
            return torch.ones_like(distance, dtype=torch.bool)
        return (distance >= 0 if self.causal else distance > -self.window) & (distance < self.window)


def from_scratch(draft: DFlashDraftModel, aux: torch.Tensor, newest: int, depth: int) -> torch.Tensor:
    """Logits [K, D] of a block behind the slots of aux [C, A, Ht], by the training forward."""
    num_slots, config = len(aux), draft.config
    width = depth if config.sample_from_anchor else depth + 1
    visibility = EngineVisibility(
        starts=torch.tensor([0]),
        stops=torch.tensor([num_slots]),
        num_context=num_slots,
        width=width,
        device=torch.device("cpu"),
    )
    states = draft(
        torch.tensor([[newest, *[config.mask_token_id] * (width - 1)]]),
        num_slots + torch.arange(width)[None],
        draft.project_hidden_states(aux.flatten(1)),
        torch.arange(num_slots),
        visibility,
    )
    return draft.compute_logits(states)[width - depth :]


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize(
    "settings",
    [{}, {"sample_from_anchor": True}, {"sliding_window": 3}, MIXED, {**MIXED, "sliding_window_non_causal": True}],
)
@torch.no_grad()
def test_blocks_behind_any_slot_are_those_of_the_dense_forward(settings: dict[str, object], depth: int) -> None:
    draft = tiny_block_draft(tiny_stepping(), 16, **settings)
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(1, 31, (3, LENGTH + 1), generator=generator)
    aux = torch.randn(3, LENGTH, 3, 32, generator=generator)
    steps, rows = DflashSteps(draft), torch.arange(3)
    steps.begin(3)
    ends = torch.tensor([0, 0, 0])
    for counts in ([3, 5, 1], [1, 2, 4], [4, 1]):
        if len(counts) < len(rows):
            steps.select(torch.tensor([0, 2]))  # the row in the middle has ended
            rows, ends = rows[[0, 2]], ends[[0, 2]]
        new = torch.tensor(counts)
        positions = ends[:, None] + torch.arange(int(new.max()))
        logits = steps.draft_all(
            VerifiedSlots(
                aux=aux[rows[:, None], positions.clamp(max=LENGTH - 1)],
                last_hidden=None,
                next_tokens=tokens[rows[:, None], (positions + 1).clamp(max=LENGTH)],
                counts=new,
                sequences=(),
            ),
            depth,
        )
        ends = ends + new
        for row, end, found in zip(rows.tolist(), ends.tolist(), logits, strict=True):
            expected = from_scratch(draft, aux[row, :end], int(tokens[row, end]), depth)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_block_reads_its_later_masks_but_nothing_of_earlier_blocks() -> None:
    """Without a window a longer block gives other first guesses; drafting once more from the same slots does not."""
    draft = tiny_block_draft(tiny_stepping(), 16)
    aux = torch.randn(1, 6, 3, 32, generator=torch.Generator().manual_seed(6))
    tokens = torch.tensor([[4, 9, 11, 3, 8, 2]])

    def drafted(parts: list[int], depths: list[int]) -> torch.Tensor:
        steps, first = DflashSteps(draft), 0
        steps.begin(1)
        for size, depth in zip(parts, depths, strict=True):
            part = slice(first, first := first + size)
            slots = VerifiedSlots(
                aux=aux[:, part],
                last_hidden=None,
                next_tokens=tokens[:, part],
                counts=torch.tensor([size]),
                sequences=(),
            )
            logits = steps.draft_all(slots, depth)
        return logits

    torch.testing.assert_close(drafted([2, 1, 3], [4, 4, 2]), drafted([6], [2]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drafted([6], [4])[:, :2], drafted([6], [2]), atol=1e-2)
