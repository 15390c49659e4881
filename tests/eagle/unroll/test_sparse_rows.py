"""Sparse targets: the loss and its gradient against explicit sums in float64, and both unrolls against each other."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.eagle.kernels.fused_head import fused_head_loss
from eaglepipe.eagle.unroll.sparse_rows import (
    DenseTargets,
    SparseRows,
    SparseTargets,
    bucketed_cross_entropy,
    densify,
)
from eaglepipe.errors import DraftError
from tests.eagle.toy_drafts import DRAFT_SIZE, gradients, make_document, make_draft, make_trainer, packed, padded


def sparsify(probs: torch.Tensor, counts: list[int], seed: int = 0) -> SparseTargets:
    """The `counts[s]` likeliest tokens of each row [S, D], shuffled inside the row; the rest is the tail."""
    generator = torch.Generator().manual_seed(seed)
    ids = []
    for row, count in zip(probs, counts, strict=True):
        ids.append(row.topk(count).indices[torch.randperm(count, generator=generator)])
    kept = [row[of_row] for row, of_row in zip(probs, ids, strict=True)]
    return SparseTargets(
        probs=torch.cat(kept) if kept else probs.new_zeros(0),
        ids=torch.cat(ids) if ids else torch.zeros(0, dtype=torch.int64),
        row_offsets=torch.tensor([0, *counts]).cumsum(0),
        tail=torch.stack([(1 - of_row.sum()).clamp(min=0) for of_row in kept]) if kept else probs.new_zeros(0),
    )


def hand_written(logits: torch.Tensor, probs: list[float], ids: list[int], tail: float) -> tuple[float, list[float]]:
    """Loss of one row and its gradient by the logits, from Python floats and the definition alone."""
    top = max(logits.tolist())
    powers = [math.exp(value - top) for value in logits.tolist()]
    q = [power / sum(powers) for power in powers]
    rest = [token for token in range(len(q)) if token not in ids]
    q_tail = sum(q[token] for token in rest)
    tail = tail if rest else 0.0
    mass = sum(probs) + tail
    loss = -sum(p * math.log(q[token]) for p, token in zip(probs, ids, strict=True))
    gradient = [mass * value for value in q]
    for p, token in zip(probs, ids, strict=True):
        gradient[token] -= p
    if tail:
        loss -= tail * math.log(q_tail)
        for token in rest:
            gradient[token] -= tail * q[token] / q_tail
    return loss, gradient


def fast(logits: torch.Tensor, targets: SparseTargets, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Losses, greedy tokens and gradient of the path that the head takes."""
    max_entries = int(targets.row_offsets.diff().max())
    found = SparseRows(targets=targets, max_entries=max_entries).losses(logits.clone(), rows, logits.dtype)
    return found.losses, found.predicted, found.gradient


def plain(logits: torch.Tensor, targets: SparseTargets, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradient of the written-out reference, through autograd."""
    leaf = logits.clone().requires_grad_()
    probs, kept, tail = (column[rows] for column in densify(targets, logits.shape[1]))
    losses = bucketed_cross_entropy(leaf, DenseTargets(probs=probs, kept=kept, tail=tail))
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    scale=st.sampled_from([0.0, 1.0, 12.0]),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_are_the_written_ones_in_float64(counts, spread, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    probs = (spread * torch.randn(len(counts), 9, generator=generator, dtype=torch.float64)).softmax(-1)
    targets = sparsify(probs, counts, seed)
    rows = torch.randint(len(counts), (7,), generator=generator)
    logits = scale * torch.randn(7, 9, generator=generator, dtype=torch.float64)
    losses, predicted, gradient = fast(logits, targets, rows)
    expected_losses, expected_gradient = plain(logits, targets, rows)
    for place, row in enumerate(rows.tolist()):
        span = slice(*targets.row_offsets[row : row + 2].tolist())
        loss, by_logit = hand_written(
            logits[place], targets.probs[span].tolist(), targets.ids[span].tolist(), float(targets.tail[row])
        )
        assert losses[place].item() == pytest.approx(loss, rel=1e-10, abs=1e-12)
        assert gradient[place].tolist() == pytest.approx(by_logit, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)
    assert torch.equal(predicted, logits.argmax(-1))


def one_row(probs: list[float], ids: list[int], tail: float, dtype: torch.dtype = torch.float32) -> SparseTargets:
    return SparseTargets(
        probs=torch.tensor(probs, dtype=dtype),
        ids=torch.tensor(ids),
        row_offsets=torch.tensor([0, len(ids)]),
        tail=torch.tensor([tail]),
    )


ROW = torch.tensor([0])


@pytest.mark.parametrize(
    ("probs", "ids", "tail"),
    [
        ([0.75, 0.25], [4, 1], 0.0),  # no tail mass, though there are tail tokens
        ([1.0], [2], 0.0),
        ([0.4], [5], 0.6),
        ([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125], [5, 4, 3, 2, 1, 0], 0.0),  # no tail tokens
        ([0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 1, 2, 3, 4, 5], 3e-4),  # nor a place for what rounding left
    ],
)
@pytest.mark.parametrize("logits", [[0.0] * 6, [3.0, -1.0, 0.5, 2.0, -4.0, 1.0]])
def test_extreme_rows_have_the_written_loss_and_gradient(probs, ids, tail, logits):
    values = torch.tensor([logits])
    losses, predicted, gradient = fast(values, one_row(probs, ids, tail), ROW)
    loss, by_logit = hand_written(values[0].double(), probs, ids, tail)
    assert losses.item() == pytest.approx(loss, rel=1e-5)
    assert gradient[0].tolist() == pytest.approx(by_logit, rel=1e-5, abs=1e-7)
    assert predicted.tolist() == values.argmax(-1).tolist()


def test_kept_mass_that_rounds_above_one_in_float16_is_learned_as_it_is():
    exact = torch.tensor([0.7001, 0.1001, 0.0999, 0.0999])
    stored = exact.half()
    assert float(stored.float().sum()) != 1.0
    targets = one_row(stored.tolist(), [3, 0, 2, 5], 0.0, torch.float16)
    logits = torch.tensor([[1.0, -2.0, 0.3, 2.0, 0.0, 0.7]])
    losses, _, gradient = fast(logits, targets, ROW)
    loss, by_logit = hand_written(logits[0].double(), stored.tolist(), [3, 0, 2, 5], 0.0)
    assert losses.item() == pytest.approx(loss, rel=1e-6)
    assert gradient[0].tolist() == pytest.approx(by_logit, abs=1e-6)


def test_tail_far_below_float32_resolution_keeps_its_loss_and_gradient():
    """1 - sum_kept q is 0 in float32 here: the tail's share has to come from its own logits."""
    logits = torch.tensor([[30.0, 0.0, 1.0]])
    losses, _, gradient = fast(logits, one_row([0.9], [0], 0.1), ROW)
    loss, by_logit = hand_written(logits[0].double(), [0.9], [0], 0.1)
    assert losses.item() == pytest.approx(loss, rel=1e-6)
    assert gradient[0].tolist() == pytest.approx(by_logit, rel=1e-5)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0, 50.0]])
    losses, predicted, gradient = fast(logits, one_row([0.5], [1], 0.5), ROW)
    assert losses.item() == pytest.approx(0.5 * 2e4)
    assert gradient[0].tolist() == pytest.approx([0.5, -0.5, 0.0, 0.0])
    losses, _, gradient = fast(-logits, one_row([0.25], [1], 0.75), ROW)
    assert losses.item() == pytest.approx(0.75 * 1e4)
    assert gradient[0].tolist() == pytest.approx([0.0, 0.75, -0.75, 0.0], abs=1e-6)
    assert predicted.tolist() == [0]


def test_equal_probabilities_and_equal_logits_go_to_the_lower_id():
    targets = one_row([0.25, 0.375, 0.375], [0, 4, 2], 0.0)
    assert SparseRows(targets=targets, max_entries=3).top_tokens().tolist() == [2]
    logits = torch.tensor([[0.0, 2.0, 2.0, 2.0, 1.0], [0.0, 0.0, 2.0, 2.0, 2.0]])
    assert fast(logits, targets, torch.tensor([0, 0]))[1].tolist() == [1, 2]


def test_kept_tokens_get_the_gradient_of_the_whole_distribution():
    """What was left out does not bias what was kept; a renormalised top-k would."""
    probs = (3 * torch.randn(5, 50, generator=torch.Generator().manual_seed(0))).softmax(-1)
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    targets = sparsify(probs, [1, 4, 8, 20, 49])
    gradient = fast(logits, targets, torch.arange(5))[2]
    whole = logits.softmax(-1) - probs
    for row, ids in enumerate(targets.ids.split(targets.row_offsets.diff().tolist())):
        torch.testing.assert_close(gradient[row, ids], whole[row, ids], rtol=1e-5, atol=1e-7)


def test_fused_head_equals_the_written_out_loss_in_any_chunks():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 12, generator=generator).requires_grad_()
    weight = torch.randn(50, 12, generator=generator).requires_grad_()
    targets = sparsify(
        (3 * torch.randn(20, 50, generator=generator)).softmax(-1), [1 + 3 * (row % 7) for row in range(20)]
    )
    rows, row_weights = torch.randint(20, (37,), generator=generator), torch.rand(37, generator=generator)
    probs, kept, tail = (column[rows] for column in densify(targets, 50))
    written = bucketed_cross_entropy(hidden @ weight.T, DenseTargets(probs=probs, kept=kept, tail=tail))
    expected = torch.autograd.grad((written * row_weights).sum(), (hidden, weight))
    for chunk_rows in (8, 64):
        fused = fused_head_loss(
            hidden, weight, SparseRows(targets=targets, max_entries=19), rows, row_weights, chunk_rows=chunk_rows
        )
        torch.testing.assert_close(fused.row_losses, written.detach(), rtol=1e-5, atol=1e-6)
        for actual, wanted in zip(torch.autograd.grad(fused.loss, (hidden, weight)), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def sparse_batch(batch: dict[str, torch.Tensor], most: int, seed: int = 0) -> dict[str, object]:
    """The same batch with 1 to `most` entries a supervised slot in place of dense probabilities."""
    rows = batch["target_probs"][batch["position_mask"][..., 0]]
    counts = torch.randint(1, most + 1, (len(rows),), generator=torch.Generator().manual_seed(seed)).tolist()
    return {**batch, "target_probs": sparsify(rows, counts, seed)}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    most=st.sampled_from([1, 5, DRAFT_SIZE]),
    supervised=st.sampled_from([0.0, 0.4, 1.0]),
    ttt_steps=st.integers(1, 6),
)
def test_compact_unroll_equals_the_reference_on_sparse_targets(lengths, most, supervised, ttt_steps):
    documents = [make_document(length, seed, supervised) for seed, length in enumerate(lengths)]
    batch = packed([documents], num_slots=sum(lengths) + 3)
    draft, batch = make_draft(), sparse_batch(batch, most)
    compact, reference = (
        make_trainer(draft, ttt_steps, implementation=name)(**batch) for name in ("compact", "reference")
    )
    torch.testing.assert_close(compact.loss_sums, reference.loss_sums, rtol=5e-6, atol=1e-6)
    for name in ("counts", "valid", "correct", "hits"):
        assert torch.equal(getattr(compact, name), getattr(reference, name)), name
    expected = gradients(draft, reference.loss)
    for name, gradient in gradients(draft, compact.loss).items():
        assert (gradient - expected[name]).abs().max() < 1e-5 * expected[name].abs().max() + 1e-6, name


@pytest.mark.parametrize("implementation", ["compact", "reference"])
def test_rows_that_keep_every_token_train_as_dense_rows_do(implementation):
    batch = packed([[make_document(20, 0), make_document(11, 1)], [make_document(25, 2)]], 33)
    draft = make_draft()
    trainer = make_trainer(draft, ttt_steps=5, implementation=implementation)
    rows = batch["target_probs"][batch["position_mask"][..., 0]]
    dense, sparse = trainer(**batch), trainer(**{**batch, "target_probs": sparsify(rows, [DRAFT_SIZE] * len(rows))})
    torch.testing.assert_close(sparse.loss_sums, dense.loss_sums, rtol=1e-5, atol=0)
    for name in ("counts", "valid", "correct", "hits"):
        assert torch.equal(getattr(sparse, name), getattr(dense, name)), name
    expected = gradients(draft, dense.loss)
    for name, gradient in gradients(draft, sparse.loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_accuracy_and_hits_do_not_depend_on_how_much_is_kept():
    batch = padded([make_document(30, 0, draft_size=3), make_document(14, 1, draft_size=3)])
    trainer = make_trainer(make_draft(draft_size=3), ttt_steps=4)
    dense = trainer(**batch)
    assert dense.hits.sum() > 0
    for most in (1, 2, 3):
        sparse = trainer(**sparse_batch(batch, most))
        assert torch.equal(sparse.correct, dense.correct) and torch.equal(sparse.hits, dense.hits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.tensor([0, DRAFT_SIZE])}, f"0..{DRAFT_SIZE}; the draft vocabulary has ids 0..{DRAFT_SIZE - 1}"),
        ({"ids": torch.tensor([-1, 0])}, "ids lie in -1..0"),
        ({"row_offsets": torch.tensor([0, 2, 2])}, "row 1 has 0 entries"),
        ({"row_offsets": torch.tensor([0, 1, 3])}, "must run from 0 to the 2 entries"),
        ({"row_offsets": torch.tensor([0, 2])}, "target_probs.row_offsets has shape"),
        ({"probs": torch.ones(3)}, "target_probs.ids has shape"),
        ({"tail": torch.zeros(3), "row_offsets": torch.tensor([0, 1, 1, 2])}, "row 1 has 0 entries"),
        ({"tail": torch.zeros(1), "row_offsets": torch.tensor([0, 2])}, "target_probs has 1 rows"),
    ],
)
def test_sparse_rows_that_do_not_fit_are_refused(changes, message):
    document = make_document(9, 0)
    document.position_mask[:] = document.loss_mask[:] = False
    document.position_mask[2:4] = document.loss_mask[2:4] = True
    good = {"probs": torch.ones(2), "ids": torch.tensor([1, 2]), "row_offsets": torch.arange(3), "tail": torch.zeros(2)}
    trainer = make_trainer(make_draft())
    batch = padded([document])
    trainer(**{**batch, "target_probs": SparseTargets(**good)})
    with pytest.raises(DraftError, match=message.replace("..", r"\.\.")):
        trainer(**{**batch, "target_probs": SparseTargets(**{**good, **changes})})
