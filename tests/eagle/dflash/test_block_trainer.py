"""The trainer of block drafts: against each block alone, in parts against flat, packed against separate."""

from dataclasses import replace

import pytest
import torch

from eaglepipe.eagle.dflash.anchors import BlockSettings, draw_blocks, plan_parts
from eaglepipe.eagle.dflash.losses import DSPARK_LOSS, BlockLoss
from eaglepipe.eagle.dflash.visibility import DenseVisibility
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets, densify
from eaglepipe.errors import DraftError
from tests.eagle.dflash.toy_blocks import (
    BLOCK,
    block_inputs,
    chain_length,
    documents,
    loss_of_block,
    make_block_draft,
    make_block_trainer,
)
from tests.eagle.toy_drafts import gradients, make_document, make_draft, make_trainer, packed
from tests.eagle.unroll.test_ttt_unroll import assert_same_gradients

SEEDS = torch.tensor([[5, 6], [7, 8]])


def pack(**settings):
    docs = documents()
    return block_inputs([docs[:2], docs[2:]], num_slots=33, **settings)


LOSSES = {
    "ce": BlockLoss(gamma=3.0),
    "kl": BlockLoss(ce=0.0, kl=1.0, gamma=2.0),
    "tv": BlockLoss(ce=0.0, tv=1.0, gamma=2.0),
    "all, D-PACE": BlockLoss(ce=0.3, kl=0.5, tv=0.9, weights="dpace", dpace_alpha=0.4),
}
SHAPES = {
    "": {},
    "windows": {"sliding_window": 3, "full_attention_layers": (1,)},
    "non-causal windows, anchors": {
        "sliding_window": 2,
        "sliding_window_non_causal": True,
        "sample_from_anchor": True,
        "num_hidden_layers": 1,
    },
}
HEADS = {
    "markov_rank": 6,
    "markov_head_type": "vanilla",
    "enable_confidence_head": True,
    "confidence_head_with_markov": True,
}
DSPARK_SHAPES = {
    "vanilla": {"sample_from_anchor": True, "heads": HEADS},
    "gated": {"sample_from_anchor": True, "heads": {**HEADS, "markov_head_type": "gated"}},
    "plain forecast": {"sample_from_anchor": True, "heads": {**HEADS, "confidence_head_with_markov": False}},
}
DSPARK_LOSSES = {
    "published": replace(DSPARK_LOSS, gamma=3.0),
    "forecast and ce": BlockLoss(ce=1.0, confidence=0.7, weights="dpace"),
}


@pytest.mark.parametrize("shape", DSPARK_SHAPES)
@pytest.mark.parametrize("loss", DSPARK_LOSSES)
def test_loss_and_gradients_of_both_heads_equal_those_of_each_block_alone(shape, loss):
    draft, settings = make_block_draft(**DSPARK_SHAPES[shape]), replace(DSPARK_LOSSES[loss], sample_from_anchor=True)
    total, positions = torch.zeros(()), 0
    for document in documents():
        for anchor in range(len(document)):
            if length := chain_length(document, anchor, BLOCK):
                total, positions = total + loss_of_block(draft, document, anchor, settings), positions + length
    expected = gradients(draft, total / positions)
    assert {name.split(".")[0] for name in expected} >= {"markov_head", "confidence_head"}
    metrics = make_block_trainer(draft, settings).compute_loss(pack(), anchor_seeds=SEEDS)
    torch.testing.assert_close(metrics.loss, total / positions, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(draft, metrics.loss), expected, 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_equal_those_of_each_block_alone(shape, loss):
    draft, settings = make_block_draft(**SHAPES[shape]), LOSSES[loss]
    depths = BLOCK - (0 if draft.config.sample_from_anchor else 1)
    settings = replace(settings, sample_from_anchor=draft.config.sample_from_anchor)
    total, positions = torch.zeros(()), 0
    for document in documents():
        for anchor in range(len(document)):
            if length := chain_length(document, anchor, depths):
                total, positions = total + loss_of_block(draft, document, anchor, settings), positions + length
    expected = gradients(draft, total / positions)
    metrics = make_block_trainer(draft, settings).compute_loss(pack(), anchor_seeds=SEEDS)
    assert int(metrics.counts.sum()) == positions > 60
    torch.testing.assert_close(metrics.loss, total / positions, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(draft, metrics.loss), expected, 1e-5)


def test_labels_of_the_teacher_are_its_likeliest_tokens_of_the_draft_vocabulary():
    draft, document, settings = make_block_draft(), make_document(14, seed=3), BlockLoss(gamma=3.0)
    anchors = [anchor for anchor in range(14) if chain_length(document, anchor, BLOCK - 1)]
    total = sum(loss_of_block(draft, document, anchor, settings, teacher_labels=True) for anchor in anchors)
    trainer = make_block_trainer(draft, settings, teacher_labels=True)
    metrics = trainer.compute_loss(block_inputs([[document]], 14), anchor_seeds=torch.tensor([[1]]))
    torch.testing.assert_close(metrics.loss, total / metrics.counts.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"sequence_partitions": 3}, {"sequence_partitions": 500}, {"head_chunk_rows": 7}])
def test_parts_give_the_loss_and_gradients_of_a_single_pass(settings):
    draft, loss = make_block_draft(), LOSSES["all, D-PACE"]
    flat = make_block_trainer(draft, loss).compute_loss(pack(), anchor_seeds=SEEDS)
    expected = gradients(draft, flat.loss)
    parts = make_block_trainer(draft, loss, **settings).compute_loss(pack(), anchor_seeds=SEEDS)
    torch.testing.assert_close(parts.loss, flat.loss, rtol=1e-5, atol=0)
    for name in ("counts", "correct", "hits", "valid"):
        assert torch.equal(getattr(parts, name), getattr(flat, name)), name
    assert_same_gradients(gradients(draft, parts.loss), expected, 1e-5)


def test_packed_documents_equal_documents_by_themselves():
    draft = make_block_draft()
    trainer = make_block_trainer(draft, max_anchors=6)
    packs = trainer.compute_loss(pack(with_probs=False), anchor_seeds=SEEDS)
    actual, total, summed = gradients(draft, packs.loss), 0.0, {}
    for document, seed in zip(documents(), SEEDS.flatten().tolist(), strict=True):
        alone = block_inputs([[document]], num_slots=len(document) + 2, with_probs=False)
        divisors = packs.counts.sum().expand(BLOCK - 1)
        metrics = trainer.compute_loss(alone, normalizers=divisors, anchor_seeds=torch.tensor([[seed]]))
        total += metrics.loss.item()
        if metrics.loss.requires_grad:
            for name, gradient in gradients(draft, metrics.loss).items():
                summed[name] = summed.get(name, 0.0) + gradient
    assert packs.loss.item() == pytest.approx(total, rel=1e-5)
    assert_same_gradients(actual, summed, 1e-4)


def test_checkpointing_and_the_dense_reference_change_no_gradient():
    draft = make_block_draft()
    trainer = make_block_trainer(draft)
    expected = gradients(draft, trainer.compute_loss(pack(), anchor_seeds=SEEDS).loss)
    draft.train().gradient_checkpointing = True
    assert_same_gradients(gradients(draft, trainer.compute_loss(pack(), anchor_seeds=SEEDS).loss), expected, 1e-6)
    trainer.visibility_class = DenseVisibility
    assert_same_gradients(gradients(draft, trainer.compute_loss(pack(), anchor_seeds=SEEDS).loss), expected, 1e-5)


def test_bfloat16_stays_near_float32():
    draft, trainers = make_block_draft(), [make_block_trainer(make_block_draft(), loss) for loss in LOSSES.values()]
    for trainer in trainers:
        plain = trainer.compute_loss(pack(), anchor_seeds=SEEDS).loss
        with torch.autocast("cpu", torch.bfloat16):
            narrow = trainer.compute_loss(pack(), anchor_seeds=SEEDS).loss
        assert narrow.item() == pytest.approx(plain.item(), rel=0.03)
        narrow.backward()
    assert draft.fc.weight.grad is None


def test_a_draft_learns_a_batch_by_heart():
    inputs, draft = block_inputs([documents()[:2]], num_slots=20, with_probs=False), make_block_draft()
    trainer = make_block_trainer(draft)
    optimizer = torch.optim.AdamW([p for p in draft.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(30):
        losses.append(trainer.compute_loss(inputs, anchor_seeds=torch.tensor([[1, 2]])).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.4 * losses[0].item()


def test_embeddings_and_head_get_no_gradient():
    draft = make_block_draft()
    make_block_trainer(draft).compute_loss(pack(), anchor_seeds=SEEDS).loss.backward()
    without = {name for name, parameter in draft.named_parameters() if parameter.grad is None}
    assert without == {"embed_tokens.weight", "lm_head.weight"}


def test_evaluation_counts_the_chains_that_eagle3_counts_whatever_its_chunks():
    draft, inputs = make_block_draft(), pack(with_probs=False)
    docs = documents()
    with torch.no_grad():
        metrics = make_block_trainer(draft).eval().compute_loss(inputs)
        chunked = make_block_trainer(draft, eval_slots=30, max_anchors=2).eval().compute_loss(inputs)
    eagle3 = make_trainer(make_draft(), BLOCK - 1)(**packed([docs[:2], docs[2:]], num_slots=33))
    assert metrics.valid.tolist() == eagle3.valid.tolist()
    assert chunked.loss.item() == pytest.approx(metrics.loss.item(), rel=1e-5)
    for name in ("counts", "correct", "hits", "valid"):
        assert torch.equal(getattr(chunked, name), getattr(metrics, name)), name


def test_sparse_distributions_with_every_token_equal_dense_ones():
    trainer, inputs = make_block_trainer(make_block_draft(), LOSSES["all, D-PACE"]), pack()
    dense = inputs.target_probs
    rows, size = dense.shape
    sparse = SparseTargets(
        probs=dense.flatten(),
        ids=torch.arange(size).repeat(rows),
        row_offsets=torch.arange(rows + 1) * size,
        tail=torch.zeros(rows),
    )
    torch.testing.assert_close(densify(sparse, size)[0], dense)
    losses = [
        trainer.compute_loss(replace(inputs, target_probs=targets), anchor_seeds=SEEDS).loss
        for targets in (dense, sparse)
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)


def test_draws_are_supervised_slots_by_seed_and_no_more_than_asked_for():
    batch = pack().batch
    settings = BlockSettings(block_size=BLOCK, max_anchors=5)
    drawn = draw_blocks(batch, settings, SEEDS.flatten().tolist())
    assert batch.loss_mask.flatten()[drawn.anchors].all() and drawn.anchors.diff().gt(0).all()
    assert drawn.starts.unique(return_counts=True)[1].tolist() == [5, 2, 5, 5]
    again = draw_blocks(batch, settings, SEEDS.flatten().tolist())
    other = draw_blocks(batch, settings, (SEEDS + 1).flatten().tolist())
    assert torch.equal(again.anchors, drawn.anchors) and not torch.equal(other.anchors, drawn.anchors)
    with pytest.raises(DraftError, match="3 anchor seeds for 4 documents"):
        draw_blocks(batch, settings, [1, 2, 3])


def test_nothing_is_computed_beyond_the_last_anchor_or_without_a_guess():
    document = make_document(40, seed=1, supervised=0.0)
    document.loss_mask[10:12] = document.position_mask[10:12] = True
    inputs = block_inputs([[make_document(9, seed=2, supervised=0.0), document]], num_slots=60, with_probs=False)
    drawn = draw_blocks(inputs.batch, BlockSettings(block_size=BLOCK), None)
    (part,) = plan_parts(drawn, BlockSettings(block_size=BLOCK), 1)
    assert part.context.tolist() == list(range(9, 9 + 12))
    assert (drawn.lengths.tolist(), part.rows.tolist()) == ([2, 1], [1, 2, BLOCK + 1])
    empty = block_inputs([[make_document(9, seed=2, supervised=0.0)]], num_slots=12, with_probs=False)
    metrics = make_block_trainer(make_block_draft()).compute_loss(empty, anchor_seeds=torch.tensor([[1]]))
    assert metrics.loss.item() == 0.0 and metrics.counts.tolist() == [0, 0, 0]


def test_inputs_that_do_not_fit_are_refused():
    trainer, inputs = make_block_trainer(make_block_draft(), LOSSES["tv"]), pack()
    with pytest.raises(DraftError, match="kl and tv read the target's distributions"):
        trainer.compute_loss(replace(inputs, target_probs=None))
    with pytest.raises(DraftError, match="target_probs has 3 rows; loss_mask has"):
        trainer.compute_loss(replace(inputs, target_probs=inputs.target_probs[:3]))
    with pytest.raises(DraftError, match=r"aux_hidden_states has shape \[2, 33, 7\]"):
        trainer.compute_loss(replace(inputs, aux_hidden_states=inputs.aux_hidden_states[..., :7]))
