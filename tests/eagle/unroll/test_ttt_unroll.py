"""The unroll: against a per-slot loop, packed against padded, cached against live, and its refusals."""

import pytest
import torch

from eaglepipe.eagle.core import _compute_target_distribution, _shift_left_with_zero, count_valid_per_step
from eaglepipe.errors import DraftError
from tests.eagle.toy_drafts import (
    DRAFT_SIZE,
    NUM_AUX,
    VOCAB_SIZE,
    gradients,
    make_document,
    make_draft,
    make_trainer,
    packed,
    padded,
    selected_ids,
)
from tests.eagle.unroll.slot_oracle import unroll_slots

IMPLEMENTATIONS = ("compact", "reference")
SHAPES = (
    {},
    {"fc_norm": True, "norm_output": True},
    {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 10, "intermediate_size": 20},
)


def assert_same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (actual[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-12)
        assert error < tolerance, (name, float(error))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unroll_equals_an_explicit_loop_over_slots(implementation, shape):
    draft = make_draft(draft_size=3, **shape)
    document = make_document(12, seed=2, draft_size=3)
    expected = unroll_slots(draft, document, num_steps=4)
    metrics = make_trainer(draft, implementation=implementation)(**padded([document]))
    assert metrics.counts.tolist() == expected.counts
    assert metrics.correct.tolist() == expected.correct
    assert metrics.hits.tolist() == expected.hits
    assert metrics.valid.tolist() == expected.valid
    assert sum(expected.hits) > 0
    torch.testing.assert_close(metrics.loss_sums, torch.tensor(expected.loss_sums), rtol=1e-4, atol=1e-5)
    means = [total / max(1, count) for total, count in zip(expected.loss_sums, expected.counts, strict=True)]
    loss = sum(0.8**step * mean for step, mean in enumerate(means)) / sum(0.8**step for step in range(4))
    assert metrics.loss.item() == pytest.approx(loss, rel=1e-5)
    assert float(metrics.accuracy) == pytest.approx(sum(expected.correct) / sum(expected.counts))
    assert int(metrics.valid_tokens) == sum(expected.counts)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_documents_equal_padded_rows(implementation):
    documents = [make_document(length, seed) for seed, length in enumerate((13, 5, 17, 1, 8))]
    draft = make_draft()
    trainer = make_trainer(draft, implementation=implementation)
    rows = trainer(**padded(documents))
    row_gradients = gradients(draft, rows.loss)
    packs = trainer(**packed([documents[:2], documents[2:]], num_slots=28))
    assert packs.counts.tolist() == rows.counts.tolist()
    assert packs.valid.tolist() == rows.valid.tolist()
    assert packs.hits.tolist() == rows.hits.tolist()
    torch.testing.assert_close(packs.loss, rows.loss, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(draft, packs.loss), row_gradients, 1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_documents_of_four_give_26_slots_ungated_and_12_gated(implementation):
    batch = packed([[make_document(4, 0), make_document(4, 1)]], num_slots=8)
    batch["loss_mask"] = torch.ones(1, 8, dtype=torch.bool)
    batch["position_mask"] = torch.ones(1, 8, 1, dtype=torch.bool)
    trainer = make_trainer(make_draft(), ttt_steps=4, implementation=implementation)
    assert int(trainer(**batch).valid_tokens) == 12
    del batch["doc_remaining"]
    assert int(trainer(**batch).valid_tokens) == 26


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_live_logits_and_cached_probabilities_agree_bit_for_bit(implementation):
    batch = padded([make_document(length, seed) for seed, length in enumerate((15, 9))])
    logits = 3 * torch.randn(2, 15, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    draft = make_draft()
    trainer = make_trainer(draft, implementation=implementation)
    del batch["target_probs"], batch["position_mask"]
    live = trainer(**batch, target_logits=logits)
    live_gradients = gradients(draft, live.loss)
    probs, mask = _compute_target_distribution(
        logits, trainer.selected_token_ids, trainer.selected_token_mask, batch["loss_mask"]
    )
    cached = trainer(**batch, target_probs=probs, position_mask=mask)
    assert torch.equal(cached.loss, live.loss)
    for name, gradient in gradients(draft, cached.loss).items():
        assert torch.equal(gradient, live_gradients[name]), name


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_probabilities_of_supervised_slots_alone_equal_dense_ones(implementation):
    batch = padded([make_document(length, seed) for seed, length in enumerate((15, 9))])
    trainer = make_trainer(make_draft(), implementation=implementation)
    dense = trainer(**batch)
    rows = batch["target_probs"][batch["position_mask"][..., 0]]
    assert torch.equal(trainer(**{**batch, "target_probs": rows}).loss, dense.loss)


def test_target_distribution_is_renormalised_inside_the_draft_vocabulary():
    logits = 2 * torch.randn(5, 7, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    ids, supervised = selected_ids(), torch.rand(5, 7) < 0.7
    covered = torch.zeros(VOCAB_SIZE, dtype=torch.bool)
    covered[ids] = True
    probs, mask = _compute_target_distribution(logits, ids, covered, supervised)
    full = logits.double().softmax(-1)[..., ids]
    torch.testing.assert_close(probs.double(), full / full.sum(-1, keepdim=True), rtol=1e-5, atol=1e-7)
    assert probs.dtype == torch.float32
    assert mask.shape == (5, 7, 1)
    assert torch.equal(mask[..., 0], torch.isin(logits.argmax(-1), ids) & supervised)


def test_shift_left_fills_the_tail_with_zeros():
    tensor = torch.arange(1, 13).view(1, 4, 3)
    assert _shift_left_with_zero(tensor).tolist() == [[[4, 5, 6], [7, 8, 9], [10, 11, 12], [0, 0, 0]]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_batch_without_supervision_gives_zero_loss_and_zero_gradients(implementation):
    batch = padded([make_document(9, 0), make_document(6, 1)])
    batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
    batch["position_mask"] = torch.zeros_like(batch["position_mask"])
    draft = make_draft()
    metrics = make_trainer(draft, implementation=implementation)(**batch)
    assert float(metrics.loss.detach()) == 0.0
    assert int(metrics.valid_tokens) == 0
    found = gradients(draft, metrics.loss)
    assert found.keys() == dict(draft.named_parameters()).keys()
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in found.values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_normalizers_of_the_whole_make_the_losses_of_its_parts_add_up(implementation):
    documents = [make_document(length, seed) for seed, length in enumerate((13, 9, 16))]
    draft = make_draft()
    trainer = make_trainer(draft, implementation=implementation)
    whole = trainer(**padded(documents))
    expected = gradients(draft, whole.loss)
    parts = [padded(documents[:1]), padded(documents[1:])]
    counts = sum(count_valid_per_step(part["position_mask"], None, trainer.ttt_steps) for part in parts)
    assert counts.tolist() == whole.counts.tolist()
    losses = [trainer(**part, normalizers=counts.double()).loss for part in parts]
    torch.testing.assert_close(sum(losses), whole.loss, rtol=1e-5, atol=0)
    assert_same_gradients(gradients(draft, sum(losses)), expected, 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_autocast_keeps_float32_losses_and_integer_counters(implementation):
    batch = padded([make_document(15, 0), make_document(11, 1)])
    draft = make_draft()
    trainer = make_trainer(draft, implementation=implementation)
    exact = trainer(**batch)
    batch["aux_hidden_states"] = batch["aux_hidden_states"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = trainer(**batch)
    assert rounded.loss.dtype == rounded.loss_sums.dtype == rounded.accuracy.dtype == torch.float32
    assert {m.dtype for m in (rounded.counts, rounded.correct, rounded.hits, rounded.valid)} == {torch.int64}
    torch.testing.assert_close(rounded.loss_sums, exact.loss_sums, rtol=3e-2, atol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(draft, rounded.loss).values())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_metrics_without_gradients_are_those_of_training(implementation, mode):
    batch = padded([make_document(15, 0), make_document(11, 1)])
    trainer = make_trainer(make_draft(), implementation=implementation)
    with mode():
        evaluated = trainer(**batch)
    trained = trainer(**batch)
    assert not evaluated.loss.requires_grad
    assert torch.equal(evaluated.loss, trained.loss)
    assert torch.equal(evaluated.hits, trained.hits)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_checkpointing_changes_no_gradient(implementation):
    batch = padded([make_document(15, 0), make_document(11, 1)])
    draft = make_draft().train()
    trainer = make_trainer(draft, implementation=implementation)
    expected = gradients(draft, trainer(**batch).loss)
    draft.model.gradient_checkpointing = True
    assert_same_gradients(gradients(draft, trainer(**batch).loss), expected, 1e-6)


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, "3"])
def test_ttt_steps_must_be_an_int_of_at_least_one(steps):
    with pytest.raises(DraftError, match="ttt_steps"):
        make_trainer(make_draft(), ttt_steps=steps)


def test_exactly_one_supervision_source():
    batch = padded([make_document(9, 0)])
    trainer = make_trainer(make_draft())
    logits = torch.zeros(1, 9, VOCAB_SIZE)
    with pytest.raises(DraftError, match="both given"):
        trainer(**batch, target_logits=logits)
    with pytest.raises(DraftError, match="together"):
        trainer(**{**batch, "position_mask": None})
    with pytest.raises(DraftError, match="neither given"):
        trainer(**{**batch, "position_mask": None, "target_probs": None})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("attention_mask", torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]]), "right padding"),
        ("attention_mask", torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 0]]), "supervision on padding"),
        ("loss_mask", torch.ones(1, 8), "loss_mask has shape"),
        ("loss_mask", torch.zeros(1, 9), "where loss_mask is not"),
        ("aux_hidden_states", torch.zeros(1, 9, NUM_AUX * 24 - 1), "aux_hidden_states has shape"),
        ("target_probs", torch.zeros(1, 9, DRAFT_SIZE + 1), "target_probs has shape"),
        ("target_probs", torch.zeros(1, DRAFT_SIZE), "target_probs has 1 rows"),
        ("seq_lens", torch.tensor([[4, 4]]), "sums to 8"),
        ("seq_lens", torch.tensor([[-1, 10]]), "row 0 has a negative length"),
        ("normalizers", torch.ones(3), "normalizers has shape"),
    ],
)
def test_arguments_that_do_not_fit_are_named(name, value, message):
    batch = padded([make_document(9, 0, supervised=1.0, covered=1.0)])
    with pytest.raises(DraftError, match=message):
        make_trainer(make_draft())(**{**batch, name: value})
