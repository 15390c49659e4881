"""The losses of block drafts against those that the `speculators` package reported for the same logits."""

import pytest
import torch

from tests.eagle.dflash.recorded_drafts import MIXED, NAMES, TERMS, recorded


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_loss_equals_the_recorded_one(name: str) -> None:
    draft = recorded(name)
    found, expected = {}, {}
    for kind in TERMS:
        sums = draft.sums(kind, draft.tensors["logits"], draft.tensors.get("confidence_logits"))
        found[kind], expected[kind] = sums.loss / sums.num_positions, draft.tensors[f"loss.{kind}"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if "confidence_loss" in recorded(name).tensors])
def test_error_of_the_confidence_head_equals_the_recorded_one(name: str) -> None:
    draft = recorded(name)
    logits = draft.tensors["logits"]
    both, alone = (draft.sums(MIXED, logits, forecast) for forecast in (draft.tensors["confidence_logits"], None))
    torch.testing.assert_close((both.loss - alone.loss) / both.num_positions, draft.tensors["confidence_loss"])


def test_recordings_hold_blocks_that_end_early_and_blocks_that_go_on_behind_a_gap() -> None:
    masks = [recorded(name).tensors["mask"][:, 1:] for name in NAMES]
    assert any(bool((~mask).any()) for mask in masks)
    assert any(bool((mask[:, 1:] & ~mask[:, :-1]).any()) for mask in masks)
