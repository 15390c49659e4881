"""Block drafts on a CUDA device, where attention is flex_attention's: equal to the exact chunks of a CPU."""

import pytest
import torch

from eaglepipe.eagle.dflash.losses import BlockLoss
from tests.eagle.dflash.toy_blocks import block_inputs, make_block_draft, make_block_trainer
from tests.eagle.toy_drafts import gradients, make_document
from tests.eagle.unroll.test_ttt_unroll import assert_same_gradients

LOSS = BlockLoss(ce=0.3, kl=0.5, tv=0.9, weights="dpace")
SEEDS = torch.tensor([[3, 4, 5]])


def moved(inputs, device):
    fields = {name: value.to(device) for name, value in vars(inputs).items() if isinstance(value, torch.Tensor)}
    return type(inputs)(batch=inputs.batch.to(device), **fields)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; tests beside this one run on a CPU")
@pytest.mark.parametrize("shape", [{}, {"sliding_window": 9, "full_attention_layers": (0,)}])
def test_loss_and_gradients_on_a_cuda_device_equal_those_on_a_cpu(shape: dict) -> None:
    draft = make_block_draft(head_dim=32, **shape)
    docs = [make_document(length, seed, supervised=0.9) for seed, length in enumerate((150, 40, 110))]
    inputs = block_inputs([docs], num_slots=310)
    expected = make_block_trainer(draft, LOSS).compute_loss(inputs, anchor_seeds=SEEDS)
    wanted = gradients(draft, expected.loss)
    draft.cuda()
    trainer = make_block_trainer(draft, LOSS).cuda()
    actual = trainer.compute_loss(moved(inputs, torch.device("cuda")), anchor_seeds=SEEDS)
    assert actual.counts.tolist() == expected.counts.tolist()
    torch.testing.assert_close(actual.loss.cpu(), expected.loss, rtol=1e-4, atol=1e-5)
    assert_same_gradients({name: g.cpu() for name, g in gradients(draft, actual.loss).items()}, wanted, 2e-3)
    with torch.autocast("cuda", torch.bfloat16):
        narrow = trainer.compute_loss(moved(inputs, torch.device("cuda")), anchor_seeds=SEEDS)
    assert narrow.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)
