"""The passes that a CUDA device fuses, run on the CPU: as plain functions, and as torch.compile makes them."""

import pytest
import torch

from eaglepipe.eagle.kernels import row_kernels
from eaglepipe.eagle.kernels.fused_head import DenseRows, fused_head_loss, wide_products_work
from eaglepipe.eagle.kernels.probe import agrees
from eaglepipe.eagle.unroll.sparse_rows import SparseRows
from tests.eagle.unroll.test_sparse_rows import sparsify

ROWS = torch.tensor([3, 0, 0, 5, 2])


def some_logits(size: int) -> torch.Tensor:
    return 3 * torch.randn(len(ROWS), size, generator=torch.Generator().manual_seed(1))


def some_targets(kind: str, size: int) -> DenseRows | SparseRows:
    probs = (2 * torch.randn(6, size, generator=torch.Generator().manual_seed(2))).softmax(-1)
    if kind == "dense":
        return DenseRows(probs=probs.half())
    return SparseRows(targets=sparsify(probs, [4, 1, size, 7, 2, size - 1]), max_entries=size)


def on_kernels(monkeypatch: pytest.MonkeyPatch, *, compiled: bool) -> None:
    monkeypatch.setattr(row_kernels, "available", lambda _: True)
    monkeypatch.setattr(row_kernels, "compiled_works", lambda *_: compiled)


@pytest.mark.parametrize(("kind", "compiled"), [("dense", False), ("sparse", False), ("dense", True)])
def test_fused_passes_give_what_the_passes_in_blocks_give(kind, compiled, monkeypatch):
    targets, logits = some_targets(kind, 37), some_logits(37)
    expected = targets.losses(logits.clone(), ROWS, torch.float32)
    on_kernels(monkeypatch, compiled=compiled)
    for num_rows in (len(ROWS), len(ROWS) - 2):
        found = targets.losses(logits[:num_rows].clone(), ROWS[:num_rows], torch.float32)
        torch.testing.assert_close(found.losses, expected.losses[:num_rows], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.gradient, expected.gradient[:num_rows], rtol=1e-5, atol=1e-7)
        assert torch.equal(found.predicted, expected.predicted[:num_rows])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_half_precision_gradient_is_the_float32_one_rounded_once(kind, monkeypatch):
    targets, logits = some_targets(kind, 37), some_logits(37)
    on_kernels(monkeypatch, compiled=False)
    exact = targets.losses(logits.clone(), ROWS, torch.float32).gradient
    assert torch.equal(targets.losses(logits.clone(), ROWS, torch.bfloat16).gradient, exact.bfloat16())


def test_what_the_compiler_makes_is_tried_before_it_is_relied_on():
    row_kernels.compiled_works.cache_clear()
    assert row_kernels.compiled_works(torch.device("cpu"), 37)  # of the shapes above, which compile once


def test_the_head_s_gradients_come_from_the_fused_passes(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(5, 8, generator=generator), torch.randn(37, 8, generator=generator)

    def gradients() -> tuple[torch.Tensor, ...]:
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = fused_head_loss(*leaves, some_targets("dense", 37), ROWS, torch.linspace(0.1, 1, 5), chunk_rows=2).loss
        return torch.autograd.grad(loss, leaves)

    expected = gradients()
    on_kernels(monkeypatch, compiled=False)
    for found, wanted in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def missing() -> tuple[torch.Tensor, ...]:
    raise RuntimeError("no kernel image is available\nand a long trace")


@pytest.mark.parametrize(
    ("fast", "why"),
    [
        (missing, "does not run here (no kernel image is available)"),
        (lambda: (torch.tensor([1.0, 2.1]),), "deviates by 5.0e-02"),
        (lambda: (torch.tensor([1.0, torch.nan]),), "deviates by nan"),
    ],
)
def test_a_kernel_that_fails_its_trial_is_not_taken(fast, why, caplog):
    assert not agrees("the kernel", fast, lambda: (torch.tensor([1.0, 2.0]),), tolerance=1e-3)
    assert why in caplog.text


def test_a_kernel_that_gives_what_the_plain_form_gives_is_taken_without_a_word(caplog):
    assert agrees("the kernel", lambda: (torch.tensor([2.001]),), lambda: (torch.tensor([2.0]),), tolerance=1e-3)
    assert not caplog.text


def test_a_cpu_has_no_products_into_a_wider_type():
    assert not wide_products_work(torch.device("cpu"), torch.bfloat16)
