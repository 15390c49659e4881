"""What the compact unroll takes on a CUDA device: its kernels pass their trials, and the numbers are bfloat16's own."""

import pytest
import torch

from eaglepipe.eagle.kernels import row_kernels
from eaglepipe.eagle.kernels.available import try_kernels
from eaglepipe.eagle.kernels.fused_head import wide_products_work
from eaglepipe.eagle.unroll.attention import varlen
from eaglepipe.eagle.unroll.attention.varlen import varlen_works
from tests.eagle.toy_drafts import gradients, make_document, make_draft, make_trainer, packed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(("kv_heads", "groups", "head_dim"), [(8, 4, 128), (8, 1, 64), (1, 8, 256)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_varlen_kernel_passes_its_trial(dtype, kv_heads, groups, head_dim):
    assert varlen_works(CUDA, dtype, kv_heads, groups, head_dim)


def test_doctor_finds_every_kernel():
    assert all(try_kernels(CUDA).values())


def test_heads_that_the_kernel_does_not_take_go_the_plain_way():
    assert not varlen_works(CUDA, torch.float32, 8, 4, 128)
    assert not varlen_works(CUDA, torch.bfloat16, 8, 4, 36)


@pytest.mark.parametrize("draft_size", [8192, 32000])
def test_the_compiled_loss_passes_its_trial(draft_size):
    assert row_kernels.compiled_works(CUDA, draft_size)


def test_products_into_float32_pass_their_trial():
    assert wide_products_work(CUDA, torch.bfloat16)


def test_the_unroll_in_bfloat16_is_as_close_to_float32_as_the_reference(monkeypatch):
    taken = []
    forward = varlen.varlen_forward
    monkeypatch.setattr(varlen, "varlen_forward", lambda *a: taken.append(1) or forward(*a))
    batch = packed([[make_document(30, 0), make_document(25, 1)]], 60)
    batch = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    draft = make_draft(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16).cuda()
    exact = gradients(draft, make_trainer(draft, 4, implementation="reference").cuda()(**batch).loss)
    errors = {}
    for implementation in ("compact", "reference"):
        with torch.autocast("cuda", torch.bfloat16):
            loss = make_trainer(draft, 4, implementation=implementation).cuda()(**batch).loss
        rounded = gradients(draft, loss)
        errors[implementation] = sum(float((rounded[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
    assert taken
    assert errors["compact"] < 1.1 * errors["reference"]
