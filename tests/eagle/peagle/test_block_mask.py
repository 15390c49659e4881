"""The mask that a draft builds is one of flex_attention's, and its own forward takes it on every device."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from eaglepipe.eagle.peagle_attention import create_peagle_mask_mod, peagle_mask
from tests.eagle.peagle.peagle_oracle import make_peagle_draft
from tests.eagle.toy_drafts import VOCAB_SIZE, gradients

Sampled = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]


def chains(lengths: list[int], depths: int, padding: int = 0) -> Sampled:
    """All depths of every slot of documents, one chain after the other, then padding."""
    total = sum(lengths)
    anchors = torch.cat((torch.arange(total).repeat_interleave(depths), torch.arange(padding) + total))
    depth = torch.cat((torch.arange(depths).repeat(total), torch.zeros(padding, dtype=torch.int64)))
    return anchors, depth, torch.tensor(lengths), total + padding


SAMPLED: dict[str, Sampled] = {
    "one document": chains([9], 3),
    "several and padding": chains([5, 1, 20], 2, padding=4),
    "more than a block": chains([70, 30], 3),
    "depth 0 alone": chains([6, 7], 1),
}


@pytest.fixture(params=SAMPLED, name="sampled")
def sampled_elements(request: pytest.FixtureRequest) -> Sampled:
    return SAMPLED[request.param]


def test_mask_is_one_of_flex_attentions_own(sampled: Sampled) -> None:
    num = len(sampled[0])
    mask = make_peagle_draft().build_peagle_block_mask(*sampled)
    assert isinstance(mask, BlockMask) and tuple(mask.shape) == (1, 1, num, num)
    visible = [
        create_mask(mask_mod, None, None, num, num, device="cpu")
        for mask_mod in (mask.mask_mod, create_peagle_mask_mod(*sampled))
    ]
    assert torch.equal(*visible)


@pytest.mark.parametrize("name", ["one document", "more than a block"])
def test_flex_attention_runs_under_the_mask(name: str) -> None:
    num = len(SAMPLED[name][0])
    mask = make_peagle_draft().build_peagle_block_mask(*SAMPLED[name])
    visible = create_mask(create_peagle_mask_mod(*SAMPLED[name]), None, None, num, num, device="cpu")
    q, k, v = torch.randn(3, 1, 2, num, 16)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=mask), expected, rtol=1e-4, atol=1e-5)


def test_forward_and_gradients_are_the_same_under_every_kind_of_mask(sampled: Sampled) -> None:
    draft = make_peagle_draft(num_hidden_layers=2)
    anchors, depths, num = sampled[0], sampled[1], len(sampled[0])
    ids, aux = anchors[None] % VOCAB_SIZE, torch.randn(1, num, 72)
    plain = create_block_mask(create_peagle_mask_mod(*sampled), None, None, num, num, device="cpu")
    rows = torch.tensor([0, num // 2, num - 1])

    def run(mask: Any, chosen: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        hidden = draft.project_hidden_states(aux)
        states = draft.forward_peagle(ids, hidden, (anchors + depths)[None], mask, rows=chosen)
        states = states if chosen is not None else states[:, rows]
        return states, gradients(draft, states.square().sum())

    expected, expected_gradients = run(peagle_mask(*sampled), rows)
    for mask in (draft.build_peagle_block_mask(*sampled), plain):
        for chosen in (None, rows):
            found, found_gradients = run(mask, chosen)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found_gradients, expected_gradients, rtol=1e-4, atol=1e-4)


def test_lengths_may_be_a_list() -> None:
    anchors, depths, _, total = SAMPLED["depth 0 alone"]
    mask = make_peagle_draft().build_peagle_block_mask(anchors, depths, [6, 7], total)
    assert bool(mask.mask_mod(0, 0, torch.tensor(7), torch.tensor(6)))
    assert not bool(mask.mask_mod(0, 0, torch.tensor(7), torch.tensor(5)))
