import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.target.supervision import supervise
from eaglepipe.vocab import build_draft_vocab

V, HIDDEN, ROWS = 41, 8, 13


def head():
    weight = torch.randn(V, HIDDEN, generator=torch.Generator().manual_seed(1))
    return lambda hidden: hidden.float() @ weight.T


def rows(count=ROWS):
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(2))


def keep(probs, rows):
    return {"target_probs": probs}


def vocab(size):
    return build_draft_vocab(np.arange(V) % 7, size, V)


@pytest.mark.parametrize("size", [1, 10, V])
def test_supervision_equals_a_float64_softmax_written_out(size):
    draft = vocab(size)
    result = supervise(head(), rows(), draft, 4, encode=keep)
    full = head()(rows()).double().softmax(dim=-1)
    inside = full[:, draft.selected_token_ids]
    expected_mass = inside.sum(dim=-1)
    torch.testing.assert_close(
        result.columns["target_probs"].double(), inside / expected_mass[:, None], rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(result.draft_mass.double(), expected_mass, rtol=1e-5, atol=1e-7)
    assert result.target_top1.tolist() == full.argmax(dim=-1).tolist()
    chosen = set(draft.selected_token_ids.tolist())
    assert result.position_mask.tolist() == [top1 in chosen for top1 in full.argmax(dim=-1).tolist()]
    assert result.finite.all() and result.draft_mass.max() <= 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(1, 25))
def test_chunks_change_no_shape_and_no_number_beyond_rounding(count, chunk_rows):
    once = supervise(head(), rows(count), vocab(10), 100, encode=keep)
    chunked = supervise(head(), rows(count), vocab(10), chunk_rows, encode=keep)
    torch.testing.assert_close(chunked.columns["target_probs"], once.columns["target_probs"], rtol=1e-5, atol=1e-7)
    for name in ("draft_mass", "target_top1", "position_mask", "finite"):
        torch.testing.assert_close(getattr(chunked, name), getattr(once, name), rtol=1e-5, atol=1e-7)
    assert once.columns["target_probs"].shape == (count, 10)
    assert (once.target_top1.dtype, once.draft_mass.dtype) == (torch.int32, torch.float32)


def test_at_most_chunk_rows_of_logits_exist_at_once():
    seen = []

    def counting(hidden):
        seen.append(hidden.shape[0])
        return head()(hidden)

    supervise(counting, rows(), vocab(10), 5)
    assert seen == [5, 5, 3]


def test_without_probabilities_everything_else_is_the_same():
    lean = supervise(head(), rows(), vocab(10), 4)
    full = supervise(head(), rows(), vocab(10), 4, encode=keep)
    assert not lean.columns
    for name in ("target_top1", "draft_mass", "position_mask", "finite"):
        assert torch.equal(getattr(lean, name), getattr(full, name))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("keep_probs", [True, False])
def test_a_row_whose_logits_are_not_finite_is_told_apart(poison, keep_probs):
    def poisoned(hidden):
        logits = head()(hidden)
        logits[3, 17] = poison
        return logits

    for size in (10, V):
        finite = supervise(poisoned, rows(), vocab(size), 100, encode=keep if keep_probs else None).finite
        assert finite.tolist() == [row != 3 for row in range(ROWS)]


@pytest.mark.parametrize("count", [1, 300])
def test_logits_in_a_narrow_type_give_what_the_same_numbers_give_in_float32(count):
    def narrow(hidden):
        return head()(hidden).bfloat16()

    found = supervise(narrow, rows(count), vocab(10), 1024, encode=keep)
    expected = supervise(lambda hidden: narrow(hidden).float(), rows(count), vocab(10), 1024, encode=keep)
    for name in ("target_top1", "draft_mass", "position_mask", "finite"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(found.columns["target_probs"], expected.columns["target_probs"])


def test_mass_of_a_row_depends_on_no_other_row():
    many = supervise(head(), rows(300), vocab(10), 256)
    poisoned = rows(300)
    poisoned[:5] = float("nan")
    beside = supervise(head(), poisoned, vocab(10), 256)
    assert torch.equal(beside.draft_mass[5:], many.draft_mass[5:])
    assert not beside.finite[:5].any() and beside.finite[5:].all()
