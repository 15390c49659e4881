"""The compact unroll and its parts against the plain ones beside them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.eagle.kernels.fused_head import DenseRows, fused_head_loss
from eaglepipe.eagle.losses import soft_cross_entropy
from eaglepipe.eagle.packed_batch import PackedBatch
from eaglepipe.eagle.unroll.interface import TrainerInputs
from eaglepipe.eagle.unroll.slot_plan import plan_unroll
from eaglepipe.eagle.unroll.span_tables import SlotSpan
from tests.eagle.toy_drafts import (
    gradients,
    make_document,
    make_draft,
    make_trainer,
    packed,
    packed_batch,
    padded,
    random_states,
)
from tests.eagle.unroll.test_ttt_unroll import assert_same_gradients


def assert_equal_unrolls(draft, batch, ttt_steps, **keywords):
    reference = make_trainer(draft, ttt_steps, implementation="reference")(**batch)
    expected = gradients(draft, reference.loss)
    compact = make_trainer(draft, ttt_steps, **keywords)(**batch)
    torch.testing.assert_close(compact.loss, reference.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(compact.loss_sums, reference.loss_sums, rtol=2e-6, atol=0)
    for name in ("counts", "valid", "correct", "hits", "valid_tokens", "accuracy"):
        assert torch.equal(getattr(compact, name), getattr(reference, name)), name
    assert_same_gradients(gradients(draft, compact.loss), expected, 1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    supervised=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    covered=st.sampled_from([0.4, 0.9, 1.0]),
    ttt_steps=st.integers(1, 7),
    gated=st.booleans(),
)
def test_any_masks_and_packing_give_the_reference_losses_and_gradients(lengths, supervised, covered, ttt_steps, gated):
    documents = [make_document(length, seed, supervised, covered) for seed, length in enumerate(lengths)]
    half = (len(documents) + 1) // 2
    rows = [documents[:half], documents[half:]] if len(documents) > 1 else [documents]
    longest = max(sum(map(len, row)) for row in rows)
    batch = packed(rows, num_slots=longest + 3)
    if not gated:
        del batch["doc_remaining"]
    assert_equal_unrolls(make_draft(), batch, ttt_steps)


@pytest.mark.parametrize(
    "shape",
    [
        {"fc_norm": True, "norm_output": True},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 2, "norm_output": True},
        {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 10},
        {"draft_size": 41},
        {"norm_before_fc": True, "norm_before_residual": True, "qk_norm": True, "norm_output": True},
        {"num_hidden_layers": 2, "norm_before_residual": True, "qk_norm": True, "sliding_window": 64},
    ],
)
def test_every_shape_of_draft_gives_the_reference_losses_and_gradients(shape):
    size = shape.get("draft_size", 29)
    documents = [make_document(length, seed, 0.2, draft_size=size) for seed, length in enumerate((50, 7, 42))]
    assert_equal_unrolls(make_draft(**shape), packed([documents[:2], documents[2:]], 60), ttt_steps=5)
    assert_equal_unrolls(make_draft(**shape), padded(documents), ttt_steps=5, head_chunk_rows=3)


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 3, "full_attention_layers": (1,)}])
@pytest.mark.parametrize("pieces", [512, 4])
def test_documents_longer_than_a_window_give_the_reference_losses_and_gradients(shape, pieces, monkeypatch):
    monkeypatch.setattr("eaglepipe.eagle.unroll.attention.blocks.WINDOWED_QUERIES", pieces)
    documents = [make_document(length, seed, 0.4) for seed, length in enumerate((42, 9, 30))]
    draft, batch = make_draft(sliding_window=3, **shape), packed([documents[:2], documents[2:]], 54)
    assert_equal_unrolls(draft, batch, ttt_steps=3)
    narrow = make_trainer(draft, 3)(**batch).loss
    draft.config.sliding_window = 64
    assert not torch.isclose(narrow, make_trainer(draft, 3)(**batch).loss, rtol=1e-5)


def test_biases_of_the_projections_are_kept():
    from eaglepipe.eagle.draft_llama import LlamaEagle3DraftModel

    config = make_draft().config
    config.attention_bias = config.mlp_bias = True
    torch.manual_seed(0)
    draft = LlamaEagle3DraftModel(config)
    for parameter in draft.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    draft.set_vocab_mapping(torch.arange(29))
    assert_equal_unrolls(draft, padded([make_document(20, 0), make_document(11, 1)]), ttt_steps=4)


def test_chain_that_crosses_a_turn_end_counts_the_next_turn():
    document = make_document(12, 0, supervised=1.0, covered=1.0)
    document.position_mask[4:6] = False
    document.loss_mask[4:6] = False
    batch = padded([document])
    metrics = make_trainer(make_draft(), ttt_steps=4)(**batch)
    assert metrics.counts.tolist() == [9, 8, 7, 6]
    assert metrics.valid.tolist() == [9, 7, 5, 3]
    assert_equal_unrolls(make_draft(), batch, ttt_steps=4)


def test_masks_that_travel_with_the_batch_are_not_fetched_from_the_device(monkeypatch):
    batch = packed([[make_document(30, 0), make_document(25, 1)]], 60)
    trainer = make_trainer(make_draft(), 4)
    expected = trainer(**batch)
    host = packed_batch(batch)
    inputs = TrainerInputs(
        batch=replace(host, host_copy=host),
        aux_hidden_states=batch["aux_hidden_states"],
        target_probs=batch["target_probs"],
    )
    monkeypatch.setattr(PackedBatch, "device", property(lambda _: pytest.fail("fetched")), raising=True)
    assert inputs.batch.on_host() is host
    monkeypatch.undo()
    found = trainer.compute_loss(inputs)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.hits, expected.hits)


def test_gradients_are_the_same_bits_every_time():
    batch = packed([[make_document(30, 0), make_document(25, 1)]], 60)
    draft = make_draft()
    first, second = (gradients(draft, make_trainer(draft, 5)(**batch).loss) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_plan_computes_active_slots_only():
    supervised = torch.zeros(2, 60, dtype=torch.bool)
    supervised[0, 10:15] = supervised[0, 50:52] = True
    masks = {"loss_mask": supervised, "position_mask": supervised}
    ones = torch.ones(2, 60, dtype=torch.int64)
    batch = packed_batch({"input_ids": ones, "attention_mask": ones, **masks})
    plan = plan_unroll(batch, 3, probs_are_compact=False, device=torch.device("cpu"))
    assert plan.cached.tolist() == list(range(52))
    assert [step.slots.tolist() for step in plan.steps] == [
        [*range(8, 15), *range(48, 52)],
        [*range(8, 14), *range(48, 51)],
        [*range(8, 13), *range(48, 50)],
    ]
    assert plan.steps[2].spans.spans == (
        SlotSpan(document=0, first=8, count=5),
        SlotSpan(document=0, first=48, count=2),
    )
    assert [step.row_slots.tolist() for step in plan.steps] == [
        [*range(10, 15), 50, 51],
        [*range(9, 14), 49, 50],
        [*range(8, 13), 48, 49],
    ]


@pytest.mark.parametrize(
    ("shape", "limit"),
    [({}, 1.1), ({"qk_norm": True}, 1.3)],  # norms of heads have ten numbers to average errors over
)
def test_bfloat16_gradients_are_as_close_to_float32_as_the_reference_ones(shape, limit):
    batch = packed([[make_document(30, 0), make_document(25, 1)]], 60)
    draft = make_draft(**shape)
    exact = gradients(draft, make_trainer(draft, 4, implementation="reference")(**batch).loss)
    errors = {}
    for implementation in ("compact", "reference"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = make_trainer(draft, 4, implementation=implementation)(**batch).loss
        rounded = gradients(draft, loss)
        errors[implementation] = sum(float((rounded[name] - exact[name]).norm() / exact[name].norm()) for name in exact)
    assert errors["compact"] < limit * errors["reference"]


def test_fused_head_equals_soft_cross_entropy():
    hidden, weight = random_states(37, 12, seed=0).float().detach(), random_states(50, 12, seed=1).float().detach()
    probs = (3 * torch.randn(20, 50)).softmax(-1).half()
    rows, row_weights = torch.randint(20, (37,)), torch.rand(37)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    plain = (soft_cross_entropy(hidden @ weight.T, probs[rows]) * row_weights).sum()
    expected = torch.autograd.grad(2.5 * plain, leaves)
    fused = fused_head_loss(hidden, weight, DenseRows(probs=probs), rows, row_weights, chunk_rows=8)
    torch.testing.assert_close(fused.loss, plain)
    assert torch.equal(fused.predicted, (hidden @ weight.T).argmax(-1))
    for actual, wanted in zip(torch.autograd.grad(2.5 * fused.loss, leaves), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


def test_fused_head_holds_huge_logits():
    hidden = torch.tensor([[300.0, -300.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    probs = torch.tensor([[0.0, 1.0, 0.0]])
    fused = fused_head_loss(hidden, weight, DenseRows(probs=probs), torch.tensor([0]), torch.ones(1), chunk_rows=4)
    assert fused.loss.item() == pytest.approx(600.0)
    fused.loss.backward()
    assert hidden.grad.tolist() == [[1.0, -1.0]]
