"""LK losses: the definition in Python floats, the plain reference, the fused head and both unrolls."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.eagle.kernels.fused_head import DenseRows
from eaglepipe.eagle.kernels.fused_lk import LKRows, lk_head_loss
from eaglepipe.eagle.losses import StepLoss, acceptance, soft_cross_entropy
from eaglepipe.eagle.unroll.sparse_rows import (
    DenseTargets,
    SparseRows,
    bucketed_acceptance,
    bucketed_cross_entropy,
    densify,
)
from eaglepipe.errors import DraftError
from tests.eagle.toy_drafts import (
    DRAFT_SIZE,
    VOCAB_SIZE,
    gradients,
    make_document,
    make_draft,
    make_trainer,
    packed,
    padded,
)
from tests.eagle.unroll.test_sparse_rows import sparse_batch, sparsify
from tests.eagle.unroll.test_ttt_unroll import assert_same_gradients

KINDS = ("alpha", "lambda")


def written_alpha(logits: list[float], probs: list[float], mass: float, kept: list[int] | None = None) -> float:
    """Of one row, from the definition; tokens that are not kept are one bucket."""
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    q = [power / sum(powers) for power in powers]
    tokens = range(len(q)) if kept is None else kept
    rest = [token for token in range(len(q)) if token not in tokens]
    alpha = sum(min(mass * probs[token], q[token]) for token in tokens)
    return alpha + min(mass * sum(probs[token] for token in rest), sum(q[token] for token in rest))


def rows_of(targets, kind: str, mass: torch.Tensor, weights: torch.Tensor) -> LKRows:
    return LKRows(
        targets=targets,
        target_rows=torch.arange(len(mass)),
        draft_mass=mass,
        loss=StepLoss(kind=kind),
        weights=weights,
        alphas=torch.empty_like(weights),
    )


def fused(logits, targets, kind, mass, weights):
    weights = torch.zeros_like(weights) if kind == "alpha" else weights
    rows = rows_of(targets, kind, mass, weights)
    found = rows.losses(logits.clone(), torch.arange(len(logits)), logits.dtype)
    return found.losses, found.predicted, found.gradient, rows.alphas


def random_rows(count: int, size: int, seed: int, spread: float = 2.0, scale: float = 2.0):
    generator = torch.Generator().manual_seed(seed)
    probs = (spread * torch.randn(count, size, generator=generator, dtype=torch.float64)).softmax(-1)
    logits = scale * torch.randn(count, size, generator=generator, dtype=torch.float64)
    mass, weights = torch.rand(2, count, generator=generator, dtype=torch.float64)
    return logits, probs, mass, weights


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    spread=st.sampled_from([0.5, 6.0]),
    scale=st.sampled_from([0.5, 12.0]),
    dense=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_are_the_written_ones_in_float64(kind, counts, spread, scale, dense, seed):
    logits, probs, mass, weights = random_rows(len(counts), 9, seed, spread, scale)
    sparse = sparsify(probs, counts, seed)
    targets = DenseRows(probs=probs) if dense else SparseRows(targets=sparse, max_entries=max(counts))
    losses, predicted, gradient, alphas = fused(logits, targets, kind, mass, weights)
    leaf = logits.clone().requires_grad_()
    if dense:
        plain, entropies = DenseTargets(probs=probs), -(probs * leaf.log_softmax(-1)).sum(-1)
    else:
        kept_probs, kept, tail = densify(sparse, 9)
        plain = DenseTargets(probs=kept_probs, kept=kept, tail=tail)
        entropies = bucketed_cross_entropy(leaf, plain)
    expected_alphas = bucketed_acceptance(leaf, plain, mass)
    if kind == "alpha":
        expected = -expected_alphas.log()
    else:
        expected = weights * entropies + (1 - weights) * (1 - expected_alphas)
    for row, count in enumerate(counts):
        ids = None if dense else sparse.ids[int(sparse.row_offsets[row]) :][:count].tolist()
        alpha = written_alpha(logits[row].tolist(), probs[row].tolist(), float(mass[row]), ids)
        assert alphas[row].item() == pytest.approx(alpha, rel=1e-9)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(alphas, expected_alphas.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-8, atol=1e-11)
    assert torch.equal(predicted, logits.argmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_slope_of_the_loss(kind):
    logits, probs, mass, weights = random_rows(3, 6, seed=1)
    gradient = fused(logits, DenseRows(probs=probs), kind, mass, weights)[2]
    for token in range(6):
        step = torch.zeros(6, dtype=torch.float64).index_fill_(0, torch.tensor([token]), 1e-6)
        up, down = (fused(logits + sign * step, DenseRows(probs=probs), kind, mass, weights)[0] for sign in (1.0, -1.0))
        torch.testing.assert_close(gradient[:, token], (up - down) / 2e-6, rtol=1e-6, atol=1e-8)


def test_bucket_of_the_tail_never_accepts_less_than_its_tokens():
    logits, probs, mass, _ = random_rows(50, 30, seed=3)
    exact = acceptance(logits, probs, mass)
    for kept in (1, 5, 29, 30):
        kept_probs, of_kept, tail = densify(sparsify(probs, [kept] * 50), 30)
        bound = bucketed_acceptance(logits, DenseTargets(probs=kept_probs, kept=of_kept, tail=tail), mass)
        assert (bound >= exact - 1e-12).all()
    torch.testing.assert_close(bound, exact)


def test_alpha_loss_of_a_certain_target_is_cross_entropy():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probs = torch.eye(7, dtype=torch.float64)[[2, 0, 6, 6]]
    losses, _, gradient, _ = fused(logits, DenseRows(probs=probs), "alpha", torch.ones(4), torch.zeros(4))
    torch.testing.assert_close(losses, -logits.log_softmax(-1)[range(4), [2, 0, 6, 6]])
    torch.testing.assert_close(gradient, logits.softmax(-1) - probs)


@pytest.mark.parametrize("kind", KINDS)
def test_draft_that_is_certainly_wrong_stays_finite(kind):
    logits, probs = torch.tensor([[0.0, 1e4, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    for targets in (DenseRows(probs=probs), SparseRows(targets=sparsify(probs, [1]), max_entries=1)):
        losses, _, gradient, alphas = fused(logits, targets, kind, torch.tensor([0.5]), torch.tensor([0.5]))
        assert alphas.item() == 0.0 and math.isfinite(losses.item()) and bool(gradient.isfinite().all())


def test_weight_of_cross_entropy_follows_the_mean_alpha_and_stays_at_most_one():
    means = torch.tensor([0.0, 0.25, 1.0], requires_grad=True)
    weights = StepLoss(kind="lambda", scale=0.5, decay=2.0).cross_entropy_weight(means)
    assert weights.tolist() == pytest.approx([0.5, 0.5 * math.exp(-0.5), 0.5 * math.exp(-2.0)])
    assert not weights.requires_grad
    assert StepLoss(kind="lambda", scale=9.0, decay=1.0).cross_entropy_weight(means).tolist() == [1.0, 1.0, 1.0]


def test_fused_head_equals_the_plain_losses_in_any_chunks_with_the_means_of_their_own_steps():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 12, generator=generator).requires_grad_()
    weight = torch.randn(50, 12, generator=generator).requires_grad_()
    probs, mass = (3 * torch.randn(20, 50, generator=generator)).softmax(-1), torch.rand(20, generator=generator)
    rows, row_weights = torch.randint(20, (37,), generator=generator), torch.rand(37, generator=generator)
    loss = StepLoss(kind="lambda", scale=0.9, decay=2.0)
    logits = hidden @ weight.T
    alphas = acceptance(logits, probs[rows], mass[rows])
    sums = [part.detach().sum() for part in alphas.split([20, 0, 17])]
    w = [0.9 * math.exp(-2.0 * float(total) / count) for total, count in ((sums[0], 20), (sums[2], 17))]
    by_row = torch.tensor([w[0]] * 20 + [w[1]] * 17)
    plain = by_row * soft_cross_entropy(logits, probs[rows]) + (1 - by_row) * (1 - alphas)
    expected = torch.autograd.grad((plain * row_weights).sum(), (hidden, weight))
    for chunk_rows in (8, 64):
        head, by_loss_row = lk_head_loss(
            hidden,
            weight,
            DenseRows(probs=probs),
            rows,
            row_weights,
            draft_mass=mass,
            loss=loss,
            rows_per_step=[20, 0, 17],
            mean_alphas=None,
            chunk_rows=chunk_rows,
        )
        torch.testing.assert_close(head.row_losses, plain.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(by_loss_row, alphas.detach(), rtol=1e-5, atol=1e-6)
        for actual, wanted in zip(torch.autograd.grad(head.loss, (hidden, weight)), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def with_mass(batch, seed: int = 0):
    """The batch as an LK loss takes it, with a random mass for each row of probabilities."""
    mass = 0.3 + 0.7 * torch.rand(batch["loss_mask"].shape, generator=torch.Generator().manual_seed(seed))
    compact = not isinstance(batch["target_probs"], torch.Tensor) or batch["target_probs"].dim() == 2
    return {**batch, "draft_mass": mass[batch["position_mask"][..., 0]] if compact else mass}


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    supervised=st.sampled_from([0.0, 0.4, 1.0]),
    most=st.sampled_from([None, 1, 5, DRAFT_SIZE]),
    ttt_steps=st.integers(1, 5),
    known=st.booleans(),
)
def test_compact_unroll_equals_the_reference(kind, lengths, supervised, most, ttt_steps, known):
    documents = [make_document(length, seed, supervised) for seed, length in enumerate(lengths)]
    batch = packed([documents], num_slots=sum(lengths) + 3)
    batch = with_mass(batch if most is None else sparse_batch(batch, most))
    if known:
        batch["mean_alphas"] = torch.linspace(0.9, 0.1, ttt_steps)
    draft, loss = make_draft(), StepLoss(kind=kind, decay=1.5)
    reference = make_trainer(draft, ttt_steps, implementation="reference", loss=loss)(**batch)
    expected = gradients(draft, reference.loss)
    compact = make_trainer(draft, ttt_steps, loss=loss, head_chunk_rows=7)(**batch)
    for name in ("loss", "loss_sums", "alpha_sums", "sampled_hits"):
        torch.testing.assert_close(getattr(compact, name), getattr(reference, name), rtol=5e-6, atol=1e-6)
    for name in ("counts", "valid", "correct", "hits"):
        assert torch.equal(getattr(compact, name), getattr(reference, name)), name
    for name, gradient in gradients(draft, compact.loss).items():
        assert (gradient - expected[name]).abs().max() < 1e-5 * expected[name].abs().max() + 1e-6, name


def test_sampled_hits_are_products_of_alphas_along_chains_that_stay_supervised():
    """Slot by slot, from probabilities of a draft that always says the same: rows of alphas written out."""
    document = make_document(24, 3, supervised=0.9)
    batch = with_mass(padded([document]))
    draft = make_draft()
    draft.lm_head.weight.data.zero_()  # q is uniform whatever the state
    found = make_trainer(draft, ttt_steps=4, loss=StepLoss(kind="lambda"))(**batch)
    mass, size = batch["draft_mass"][0].double(), document.probs.shape[1]
    alphas = (document.probs.double() * mass[:, None]).clamp(max=1 / size).sum(-1)
    expected = []
    for step in range(4):
        chains = [range(slot, slot + step + 1) for slot in range(24 - step)]
        reached = [
            math.prod(float(alphas[t]) for t in chain) for chain in chains if document.position_mask[chain].all()
        ]
        expected.append(sum(reached))
    torch.testing.assert_close(found.sampled_hits.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_add_up_to_the_whole(kind):
    documents = [make_document(length, seed) for seed, length in enumerate((30, 9, 21))]
    draft = make_draft()
    trainer = make_trainer(draft, ttt_steps=3, loss=StepLoss(kind=kind))
    whole = trainer(**with_mass(padded(documents)))
    expected = gradients(draft, whole.loss)
    share = {"normalizers": whole.counts.clamp(min=1), "mean_alphas": whole.alpha_sums / whole.counts.clamp(min=1)}
    mass = with_mass(padded(documents))["draft_mass"]
    parts = [
        trainer(**padded([document]), draft_mass=mass[row : row + 1, : len(document)], **share)
        for row, document in enumerate(documents)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    torch.testing.assert_close(sum(part.alpha_sums for part in parts), whole.alpha_sums)
    assert_same_gradients(gradients(draft, sum(part.loss for part in parts)), expected, 1e-5)


@pytest.mark.parametrize("implementation", ["compact", "reference"])
def test_logits_give_what_their_probabilities_and_mass_give(implementation):
    batch = padded([make_document(20, 0), make_document(11, 1)])
    logits = 2 * torch.randn(2, 20, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    trainer = make_trainer(make_draft(), implementation=implementation, loss=StepLoss(kind="alpha"))
    whole = logits.softmax(-1)[..., trainer.selected_token_ids]
    covered = trainer.selected_token_mask[logits.argmax(-1)]
    cached = {
        "target_probs": whole / whole.sum(-1, keepdim=True),
        "position_mask": batch["loss_mask"] & covered,
        "draft_mass": whole.sum(-1),
    }
    live = trainer(**{**batch, "target_probs": None, "position_mask": None}, target_logits=logits)
    torch.testing.assert_close(trainer(**{**batch, **cached}).loss, live.loss)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("alpha", {"draft_mass": None}, "un-renormalised probabilities: give draft_mass"),
        ("lambda", {"draft_mass": torch.ones(1, 8)}, r"draft_mass has shape \[1, 8\]"),
        ("lambda", {"mean_alphas": torch.ones(3)}, "mean_alphas has shape"),
        ("lambda", {"normalizers": torch.ones(4)}, "needs its mean_alphas too"),
        ("alpha", {"target_probs": None, "position_mask": None, "target_logits": torch.zeros(1, 9, VOCAB_SIZE)}, "go"),
    ],
)
def test_what_an_lk_loss_cannot_be_taken_from_is_refused(kind, changes, message):
    batch = with_mass(padded([make_document(9, 0)]))
    with pytest.raises(DraftError, match=message):
        make_trainer(make_draft(), loss=StepLoss(kind=kind))(**{**batch, **changes})


@pytest.mark.parametrize("loss", [StepLoss(kind="kl"), StepLoss(decay=-1.0), StepLoss(scale=math.nan)])  # type: ignore[arg-type]
def test_loss_settings_that_mean_nothing_are_refused(loss):
    with pytest.raises(DraftError, match=r"loss must be|at least 0"):
        make_trainer(make_draft(), loss=loss)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_are_as_close_to_float32_as_the_reference_ones(kind):
    batch = with_mass(packed([[make_document(30, 0), make_document(25, 1)]], 60))
    draft, loss = make_draft(), StepLoss(kind=kind)
    exact = gradients(draft, make_trainer(draft, 4, implementation="reference", loss=loss)(**batch).loss)
    errors = {}
    for implementation in ("compact", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            metrics = make_trainer(draft, 4, implementation=implementation, loss=loss)(**batch)
        assert metrics.loss.dtype == metrics.loss_sums.dtype == metrics.alpha_sums.dtype == torch.float32
        rounded = gradients(draft, metrics.loss)
        errors[implementation] = sum(float((rounded[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
    assert errors["compact"] < 1.1 * errors["reference"]
