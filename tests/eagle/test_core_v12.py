"""EAGLE-1/2: the loss against one made of transformers' own layers and the target's live outputs."""

from typing import Any

import pytest
import torch

from eaglepipe.eagle.core_v12 import EagleTrainerModule
from eaglepipe.errors import DraftError
from eaglepipe.target_head import TargetHead
from tests.eagle.toy_eagle1 import (
    KEYS,
    arguments,
    documents,
    gradients,
    hand_loss,
    make_draft,
    make_target,
    make_trainer,
    padded,
)


def test_loss_and_gradients_are_those_computed_by_hand_from_the_live_target() -> None:
    target, draft = make_target(), make_draft()
    rows = documents(target, [9, 5, 12])
    metrics = make_trainer(target, draft).train()(**arguments([[row] for row in rows], 12))
    expected = hand_loss(target, draft, rows)
    torch.testing.assert_close(metrics.loss, expected, rtol=1e-5, atol=1e-6)
    mine, by_hand = gradients(draft, metrics.loss), gradients(draft, expected)
    for name in KEYS:
        torch.testing.assert_close(mine[name], by_hand[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_packed_documents_learn_what_padded_rows_learn(num_layers: int) -> None:
    target, draft = make_target(), make_draft(num_hidden_layers=num_layers)
    rows = documents(target, [9, 5, 12, 4])
    module = make_trainer(target, draft).eval()
    packed = module(**arguments([[rows[0], rows[1]], [rows[2], rows[3]]], 18))
    apart = module(**arguments([[row] for row in rows], 12))
    torch.testing.assert_close(packed.loss, apart.loss, rtol=1e-5, atol=0)
    for name in ("counts", "correct", "hits", "valid"):
        assert torch.equal(getattr(packed, name), getattr(apart, name)), name
    mine, others = gradients(draft, packed.loss), gradients(draft, apart.loss)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.no_grad()
def test_chain_counts_are_those_of_drafting_token_by_token(num_layers: int) -> None:
    """From each slot on, the draft reads its own features behind the target's, as it does when it decodes."""
    target, draft = make_target(), make_draft(num_hidden_layers=num_layers)
    (document,) = documents(target, [11])
    document["supervised"][2:-1] = True
    ids, features, supervised = document["ids"], document["features"], document["supervised"]
    steps = 4
    hits, valid = [0] * steps, [0] * steps
    for slot in range(len(ids) - 1):
        read, chain = features[: slot + 1], True
        for step in range(steps):
            if slot + step + 1 >= len(ids) or not supervised[slot + 1 : slot + step + 2].all():
                break
            row = ids[1 : slot + step + 2][None]
            state = draft(row, read[None], torch.ones_like(row))[0, -1]
            chain = chain and bool(target.lm_head(state).argmax() == document["logits"][slot + step + 1].argmax())
            valid[step] += 1
            hits[step] += chain
            read = torch.cat((read, state[None]))
    draft_that_hits = make_trainer(target, draft, chain_steps=steps).eval()(**arguments([[document]], 11))
    assert draft_that_hits.valid.tolist() == draft_that_hits.counts.tolist() == valid
    assert draft_that_hits.hits.tolist() == hits
    assert valid[0] > valid[-1] > 0


@torch.no_grad()
def test_a_perfect_draft_accepts_whole_chains() -> None:
    """With a head that looks at nothing, every greedy token is the same: all chains hit."""
    target = make_target()
    target.lm_head.weight.data.zero_()
    metrics = make_trainer(target, make_draft()).eval()(**padded(target, [9, 12]))
    assert metrics.hits.tolist() == metrics.valid.tolist() and int(metrics.hits[-1]) > 0


def test_training_reports_the_first_depth_alone_and_evaluation_all() -> None:
    target, draft = make_target(), make_draft()
    module, batch = make_trainer(target, draft), padded(target, [9, 12])
    training, evaluation = module.train()(**batch), module.eval()(**batch)
    assert training.counts[1:].tolist() == [0, 0] and training.valid[1:].tolist() == [0, 0]
    assert training.counts[0] == evaluation.counts[0] and evaluation.counts[1] > 0
    torch.testing.assert_close(training.loss, evaluation.loss)
    torch.testing.assert_close(evaluation.loss_sums[0] / evaluation.counts[0], evaluation.loss.detach())


def test_a_batchs_share_is_its_sum_over_the_normalizer() -> None:
    target, draft = make_target(), make_draft()
    module, batch = make_trainer(target, draft).train(), padded(target, [9, 12])
    own = module(**batch)
    share = module(**batch, normalizers=torch.tensor([100, 1, 1]))
    torch.testing.assert_close(share.loss * 100, own.loss * own.counts[0])


def test_noise_enters_training_alone_and_follows_its_seeds() -> None:
    target, draft = make_target(), make_draft()
    quiet, batch = make_trainer(target, draft), padded(target, [9, 12])
    noisy = make_trainer(target, draft, feature_noise=0.1)
    seeds = torch.randint(2**32, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy.eval()(**batch, noise_seeds=seeds).loss, quiet.eval()(**batch).loss)
    first = noisy.train()(**batch, noise_seeds=seeds).loss
    assert first != quiet.train()(**batch).loss
    assert torch.equal(noisy(**batch, noise_seeds=seeds).loss, first)
    assert noisy(**batch, noise_seeds=seeds.flip(1)).loss != first


def test_gradient_checkpointing_changes_nothing() -> None:
    target, draft = make_target(), make_draft(num_hidden_layers=2)
    module, batch = make_trainer(target, draft).train(), padded(target, [9, 12])
    plain = gradients(draft, module(**batch).loss)
    draft.gradient_checkpointing = True
    for name, gradient in gradients(draft, module(**batch).loss).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])}, "right padding"),
        ({"loss_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1]])[:, :3]}, "loss_mask has shape"),
        ({"target_hidden_states": torch.zeros(2, 4, 8)}, r"target_hidden_states has shape \[2, 4, 8\]"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 0]] * 2)}, "set on padding"),
        ({"normalizers": torch.ones(9)}, "normalizers has shape"),
    ],
    ids=["left padding", "mask shape", "width", "supervised padding", "normalizers"],
)
def test_batches_that_do_not_fit_are_refused(changes: dict[str, torch.Tensor], words: str) -> None:
    target, draft = make_target(), make_draft()
    batch = {
        "input_ids": torch.zeros(2, 4, dtype=torch.int64),
        "attention_mask": torch.ones(2, 4),
        "loss_mask": torch.tensor([[0, 1, 1, 0]] * 2),
        "target_hidden_states": torch.zeros(2, 4, 16),
    }
    with pytest.raises(DraftError, match=words):
        make_trainer(target, draft)(**{**batch, **changes})


@pytest.mark.parametrize("steps", [0, -1, True, 2.0])
def test_depths_that_are_no_positive_int_are_refused(steps: Any) -> None:
    with pytest.raises(DraftError, match="chain_steps"):
        make_trainer(make_target(), make_draft(), chain_steps=steps)


def test_a_head_of_the_draft_vocabulary_alone_is_refused() -> None:
    with pytest.raises(DraftError, match="rows of every token"):
        EagleTrainerModule(make_draft(), TargetHead(weight=torch.zeros(20, 16)))
