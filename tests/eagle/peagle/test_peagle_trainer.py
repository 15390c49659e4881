"""P-EAGLE's trainer: against explicit loops over elements, partitioned against flat, packed against separate rows."""

import pytest
import torch

from eaglepipe.eagle.peagle_data import CodSettings, count_elements, sample_cod
from eaglepipe.eagle.unroll.sparse_rows import SparseTargets, densify
from eaglepipe.errors import DraftError
from tests.eagle.peagle.peagle_oracle import make_peagle, make_peagle_draft, peagle_logits
from tests.eagle.toy_drafts import (
    DRAFT_SIZE,
    VOCAB_SIZE,
    gradients,
    make_document,
    make_draft,
    make_trainer,
    packed,
    packed_batch,
    padded,
)
from tests.eagle.unroll.test_ttt_unroll import assert_same_gradients

SEEDS = torch.tensor([[5, 6], [7, 8]])


def documents():
    return [make_document(length, seed) for seed, length in enumerate((22, 5, 17, 9))]


def pack(rows=None):
    docs = documents()
    return packed(rows or [docs[:2], docs[2:]], num_slots=30)


def train_elements(document, depths, seed):
    """Those in the loss and all others that a document has, in the order of drawing."""
    valid = document.loss_mask.clone()
    valid[-1] = False
    cod = CodSettings(depths=depths)
    drawn = list(zip(*(t.tolist() for t in sample_cod(valid, cod, torch.Generator().manual_seed(seed))), strict=True))
    context = [(slot, 0) for slot in range(len(document))]
    return context + drawn, [valid[a].item() if d == 0 else True for a, d in context + drawn]


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 2, "fc_norm": True, "norm_output": True}])
@pytest.mark.parametrize("partitions", [1, 3])
def test_loss_metrics_and_gradients_equal_an_explicit_loop_over_elements(shape, partitions):
    draft, document, depths = make_peagle_draft(**shape), make_document(12, seed=2, supervised=0.9), 4
    elements, in_loss = train_elements(document, depths, seed=5)
    weights = {name: value.detach().double().requires_grad_() for name, value in draft.named_parameters()}
    logits = peagle_logits(draft, weights, document, elements)
    probs = document.probs.double()
    sums, counts, correct = [torch.zeros((), dtype=torch.float64)] * depths, [0] * depths, [0] * depths
    for (anchor, depth), row, counted in zip(elements, logits, in_loss, strict=True):
        if not counted:
            continue
        target = probs[anchor + depth]
        sums[depth] = sums[depth] + (target * (target.log() - row.log_softmax(0))).sum()
        counts[depth] += 1
        covered = bool(document.position_mask[anchor + depth])
        correct[depth] += int(covered and row.argmax() == target.argmax())
    expected = sum(sums) / sum(counts)
    assert counts[3] > 0
    expected.backward()
    batch = packed([[document]], num_slots=15)
    metrics = make_peagle(draft, depths, sequence_partitions=partitions)(**batch, cod_seeds=torch.tensor([[5]]))
    assert metrics.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(metrics.loss_sums, torch.stack(sums).detach().float(), rtol=1e-4, atol=1e-5)
    assert (metrics.counts.tolist(), metrics.correct.tolist()) == (counts, correct)
    assert int(metrics.valid_tokens) == sum(counts)
    wanted = {name: value.grad.float() for name, value in weights.items() if value.grad is not None}
    assert_same_gradients(gradients(draft, metrics.loss), wanted, 1e-4)


@pytest.mark.parametrize("partitions", [2, 3, 7])
@pytest.mark.parametrize("layers", [1, 3])
def test_partitions_give_the_loss_and_gradients_of_a_single_pass(partitions, layers):
    draft = make_peagle_draft(num_hidden_layers=layers)
    flat = make_peagle(draft)(**pack(), cod_seeds=SEEDS)
    expected = gradients(draft, flat.loss)
    parts = make_peagle(draft, sequence_partitions=partitions)(**pack(), cod_seeds=SEEDS)
    torch.testing.assert_close(parts.loss, flat.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.loss_sums, flat.loss_sums, rtol=1e-5, atol=0)
    for name in ("counts", "correct", "hits", "valid"):
        assert torch.equal(getattr(parts, name), getattr(flat, name)), name
    assert_same_gradients(gradients(draft, parts.loss), expected, 1e-5)


def test_packed_documents_equal_documents_by_themselves():
    draft, docs = make_peagle_draft(), documents()
    trainer = make_peagle(draft)
    packs = trainer(**pack(), cod_seeds=SEEDS)
    actual = gradients(draft, packs.loss)
    counts = packs.counts.sum().expand(4)
    total, summed = 0.0, {}
    for document, seed in zip(docs, SEEDS.flatten().tolist(), strict=True):
        alone = packed([[document]], num_slots=len(document))
        metrics = trainer(**alone, normalizers=counts, cod_seeds=torch.tensor([[seed]]))
        total += metrics.loss.item()
        for name, gradient in gradients(draft, metrics.loss).items():
            summed[name] = summed.get(name, 0.0) + gradient
    assert packs.loss.item() == pytest.approx(total, rel=1e-5)
    assert_same_gradients(actual, summed, 1e-4)
    rows = trainer(**{**padded(docs), "position_ids": None}, cod_seeds=SEEDS.view(4, 1))
    torch.testing.assert_close(rows.loss, packs.loss, rtol=1e-5, atol=0)
    assert rows.counts.tolist() == packs.counts.tolist()


def test_counts_are_known_before_the_forward():
    batch = pack()
    counts = count_elements(packed_batch(batch), settings=CodSettings(depths=4), seeds=SEEDS.flatten().tolist())
    assert make_peagle(make_peagle_draft())(**batch, cod_seeds=SEEDS).counts.tolist() == counts.tolist()


def test_evaluation_counts_the_chains_that_eagle3_counts_whatever_its_chunks():
    draft, batch = make_peagle_draft(), pack()
    whole = make_peagle(draft).eval()
    with torch.no_grad():
        metrics = whole(**batch)
        chunked = make_peagle(draft, eval_elements=25).eval()(**batch)
        assert torch.equal(whole(**batch).loss, metrics.loss)
    assert metrics.valid.tolist() == make_trainer(draft)(**batch).valid.tolist()
    assert chunked.loss.item() == pytest.approx(metrics.loss.item(), rel=1e-5)
    for name in ("counts", "correct", "hits", "valid"):
        assert torch.equal(getattr(chunked, name), getattr(metrics, name)), name


def test_hits_are_chains_whose_greedy_drafts_all_match():
    draft, document = make_peagle_draft(), make_document(14, seed=4, supervised=1.0, covered=0.9)
    elements = [(a, d) for a in range(14) for d in range(3) if a + d < 13 or d == 0]
    weights = {name: value.detach().double() for name, value in draft.named_parameters()}
    drafts = peagle_logits(draft, weights, document, elements).argmax(1)
    for (anchor, depth), token in zip(elements, drafts.tolist(), strict=True):
        if anchor % 2 == 0:
            document.probs[anchor + depth] = torch.nn.functional.one_hot(torch.tensor(token), DRAFT_SIZE).float()
    right = {}
    for (anchor, depth), token in zip(elements, drafts.tolist(), strict=True):
        slot = anchor + depth
        right[anchor, depth] = bool(document.position_mask[slot]) and token == int(document.probs[slot].argmax())
    chains = [[all(right.get((a, s), False) for s in range(d + 1)) for a in range(13 - d)] for d in range(3)]
    with torch.no_grad():
        metrics = make_peagle(draft, 3).eval()(**packed([[document]], num_slots=14))
    assert metrics.hits.tolist() == [sum(chain) for chain in chains]
    assert metrics.valid.tolist() == [13, 12, 11] and metrics.hits[1] > 0


def compact_rows(batch):
    return {**batch, "target_probs": batch["target_probs"][batch["loss_mask"]]}


def test_rows_of_supervised_slots_alone_give_the_same():
    draft = make_peagle_draft()
    whole = make_peagle(draft)(**pack(), cod_seeds=SEEDS)
    compact = make_peagle(draft)(**compact_rows(pack()), cod_seeds=SEEDS)
    assert torch.equal(whole.loss, compact.loss) and torch.equal(whole.correct, compact.correct)


def test_sparse_rows_give_the_bucketed_divergence():
    draft, batch = make_peagle_draft(), compact_rows(pack())
    ordered, ids = batch["target_probs"].sort(dim=1, descending=True)
    kept = ordered.cumsum(1) - ordered < 0.8
    kept[0] = True
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)))
    tail = (1 - torch.where(kept, ordered, 0).sum(1)).clamp(min=0)
    sparse = SparseTargets(probs=ordered[kept], ids=ids[kept], row_offsets=offsets, tail=tail)
    metrics = make_peagle(draft)(**{**batch, "target_probs": sparse}, cod_seeds=SEEDS)
    probs, is_kept, tail = densify(sparse, DRAFT_SIZE)
    entropy = torch.special.entr(probs).sum(1) + torch.where(is_kept.all(1), 0.0, torch.special.entr(tail))
    plain = make_peagle(draft)(**batch, cod_seeds=SEEDS)
    assert 0 < metrics.loss.item() < plain.loss.item()
    assert (entropy <= torch.special.entr(batch["target_probs"]).sum(1) + 1e-5).all()
    everything = SparseTargets(
        probs=batch["target_probs"].flatten(),
        ids=torch.arange(DRAFT_SIZE).repeat(len(tail)),
        row_offsets=torch.arange(len(tail) + 1) * DRAFT_SIZE,
        tail=torch.zeros(len(tail)),
    )
    exact = make_peagle(draft)(**{**batch, "target_probs": everything}, cod_seeds=SEEDS)
    assert exact.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)


def test_target_logits_and_their_probabilities_give_the_same():
    draft, batch = make_peagle_draft(), pack()
    trainer = make_peagle(draft)
    logits = torch.randn(2, 30, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    live = {**batch, "target_logits": logits, "target_probs": None, "position_mask": None}
    probs = logits[..., trainer.selected_token_ids].softmax(-1)
    covered = trainer.selected_token_mask[logits.argmax(-1)] & batch["loss_mask"]
    cached = trainer(**{**batch, "target_probs": probs, "position_mask": covered}, cod_seeds=SEEDS)
    assert torch.equal(trainer(**live, cod_seeds=SEEDS).loss, cached.loss)


def test_activation_checkpointing_changes_nothing():
    draft = make_peagle_draft(num_hidden_layers=2).train()
    plain = gradients(draft, make_peagle(draft)(**pack(), cod_seeds=SEEDS).loss)
    draft.model.gradient_checkpointing = True
    for partitions in (1, 2):
        loss = make_peagle(draft, sequence_partitions=partitions)(**pack(), cod_seeds=SEEDS).loss
        assert_same_gradients(gradients(draft, loss), plain, 1e-5)


def test_no_supervision_at_all_is_a_loss_of_zero():
    batch = pack()
    batch["loss_mask"], batch["position_mask"] = batch["loss_mask"] & False, batch["position_mask"] & False
    for partitions in (1, 2):
        metrics = make_peagle(make_peagle_draft(), sequence_partitions=partitions)(**batch, cod_seeds=SEEDS)
        assert metrics.loss.item() == 0.0 and not metrics.loss.requires_grad


def saved_elements(draft, **keywords):
    """Elements of all tensors that a forward keeps for its backward at any time, at most."""
    live, peak = {}, 0

    class Held:
        def __init__(self, tensor):
            nonlocal peak
            self.tensor = tensor
            live[id(self)] = tensor.numel()
            peak = max(peak, sum(live.values()))

        def __del__(self):
            live.pop(id(self), None)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        make_peagle(draft, depths=8, **keywords)(**pack([[make_document(30, 1, 1.0)]]), cod_seeds=SEEDS[:1, :1])
    return peak


def test_partitions_keep_fewer_activations():
    draft = make_peagle_draft(num_hidden_layers=2)
    flat = saved_elements(draft)
    assert saved_elements(draft, sequence_partitions=4) < 0.7 * flat


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"depths": 0}, "depths must be an int of at least 1"),
        ({"depths": 2.0}, "depths must be an int"),
        ({"depths": True}, "depths must be an int"),
        ({"sequence_partitions": 0}, "sequence_partitions must be an int of at least 1"),
        ({"sequence_partitions": 1.5}, "sequence_partitions must be an int"),
        ({"cod_ratio": 0.0}, "cod_ratio"),
        ({"cod_ratio": 1.2}, "cod_ratio"),
        ({"cod_min_ratio": -0.1}, "cod_min_ratio"),
        ({"cod_min_ratio": float("nan")}, "cod_min_ratio"),
    ],
)
def test_settings_out_of_range_are_named(keywords, message):
    with pytest.raises(DraftError, match=message):
        make_peagle(make_peagle_draft(), **keywords)


def test_a_draft_that_does_not_draft_in_parallel_is_refused():
    with pytest.raises(DraftError, match="parallel_drafting"):
        make_peagle(make_draft())
    draft = make_peagle_draft()
    draft.config.mask_token_id = None
    with pytest.raises(DraftError, match="without mask token"):
        make_peagle(draft)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_logits": torch.zeros(2, 30, VOCAB_SIZE)}, "both given"),
        ({"target_probs": None, "position_mask": None}, "neither given"),
        ({"position_mask": None}, "go together"),
        ({"attention_mask": torch.ones(2, 30).index_fill(1, torch.tensor([0]), 0)}, "right padding only"),
        ({"target_probs": torch.ones(3, DRAFT_SIZE)}, "loss_mask has"),
        ({"cod_seeds": torch.tensor([[1, 2], [3, -1]])}, "3 seeds for 4 documents"),
        ({"normalizers": torch.ones(3)}, "normalizers"),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, message):
    with pytest.raises(DraftError, match=message):
        make_peagle(make_peagle_draft())(**{**pack(), "cod_seeds": SEEDS, **change})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA; the dense attention is tested on the CPU")
@pytest.mark.parametrize("head_dim", [6, 16])
def test_flex_attention_on_cuda_gives_the_dense_attentions_loss_and_gradients(head_dim):
    """Heads of 6 run eagerly, heads of 16 compiled."""
    draft = make_peagle_draft(num_hidden_layers=2, head_dim=head_dim)
    dense = make_peagle(draft)(**pack(), cod_seeds=SEEDS)
    expected = gradients(draft, dense.loss)
    batch = {name: tensor.cuda() for name, tensor in pack().items()}
    flexed = make_peagle(draft.cuda(), sequence_partitions=2).cuda()(**batch, cod_seeds=SEEDS.cuda())
    assert flexed.loss.item() == pytest.approx(dense.loss.item(), rel=1e-4)
    actual = {name: gradient.cpu() for name, gradient in gradients(draft, flexed.loss).items()}
    assert_same_gradients(actual, expected, 1e-3)
