"""The head's loss with bfloat16 products on a CPU: rounded logits, but softmax, losses and gradients in float32."""

import pytest
import torch

from eaglepipe.eagle.kernels.fused_head import DenseRows, TargetRows, fused_head_loss
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets

ROWS, HIDDEN, DRAFT, TARGETS = 70, 32, 40_000, 9  # a block of the CPU's cache holds 13 rows of so many logits


def dense() -> tuple[TargetRows, torch.Tensor]:
    probs = torch.randn(TARGETS, DRAFT).mul(2).softmax(-1)
    return DenseRows(probs=probs), probs


def sparse() -> tuple[TargetRows, torch.Tensor]:
    ids = torch.stack([torch.randperm(DRAFT)[:5] for _ in range(TARGETS)])
    kept = torch.rand(TARGETS, 5).mul(0.2)
    tail = 1 - kept.sum(-1)
    targets = SparseTargets(
        probs=kept.flatten(), ids=ids.flatten(), row_offsets=torch.arange(0, 5 * TARGETS + 1, 5), tail=tail
    )
    return SparseRows.of(targets), torch.zeros(0)


@pytest.mark.parametrize("make", [dense, sparse])
@pytest.mark.parametrize("chunk_rows", [None, 33])
def test_only_the_products_are_rounded(make, chunk_rows):
    torch.manual_seed(0)
    targets, probs = make()
    hidden, weight = torch.randn(ROWS, HIDDEN, requires_grad=True), torch.randn(DRAFT, HIDDEN, requires_grad=True)
    rows, weights = torch.randint(TARGETS, (ROWS,)), torch.rand(ROWS)

    with torch.autocast("cpu", torch.bfloat16):
        narrow = fused_head_loss(hidden, weight, targets, rows, weights, chunk_rows=chunk_rows)
    narrow.loss.backward()

    logits = (hidden.detach().bfloat16() @ weight.detach().bfloat16().t()).float().requires_grad_()
    if len(probs):
        expected = -(probs[rows] * logits.log_softmax(-1)).sum(-1)
    else:
        log_q, kept = logits.log_softmax(-1), targets.targets
        ids, given = kept.ids.view(TARGETS, 5)[rows], kept.probs.view(TARGETS, 5)[rows]
        others = log_q.scatter(-1, ids, -torch.inf).logsumexp(-1)
        expected = -(given * log_q.gather(-1, ids)).sum(-1) - kept.tail[rows] * others
    torch.testing.assert_close(narrow.row_losses, expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(narrow.predicted, logits.argmax(-1))
    (expected * weights).sum().backward()
    assert hidden.grad is not None and weight.grad is not None and logits.grad is not None
    for given, right in (
        (hidden.grad, logits.grad @ weight.detach()),
        (weight.grad, logits.grad.t() @ hidden.detach()),
    ):
        assert (given - right).norm() / right.norm() < 0.01
