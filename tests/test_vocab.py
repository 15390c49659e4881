import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.errors import VocabError
from eaglepipe.vocab import add_counts, build_draft_vocab


def chosen_by_hand(counts, size, forced):
    chosen = set(forced)
    for token_id in sorted(range(len(counts)), key=lambda token_id: (-counts[token_id], token_id)):
        if len(chosen) < size:
            chosen.add(token_id)
    return sorted(chosen)


@st.composite
def vocab_requests(draw):
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
    size = draw(st.integers(1, len(counts)))
    forced = draw(st.sets(st.integers(0, len(counts) - 1), max_size=size))
    return counts, size, forced


@settings(max_examples=150, deadline=None)
@given(vocab_requests())
def test_selection_equals_the_rule_done_by_hand(request):
    counts, size, forced = request
    vocab = build_draft_vocab(np.array(counts), size, len(counts), forced)
    assert vocab.selected_token_ids.tolist() == chosen_by_hand(counts, size, forced)
    assert vocab.selected_token_mask.nonzero().flatten().tolist() == vocab.selected_token_ids.tolist()
    assert (vocab.size, vocab.target_size) == (size, len(counts))


def test_unused_ids_fill_up_from_the_lowest():
    vocab = build_draft_vocab(np.array([0, 0, 7, 0, 0, 1]), 4, 6)
    assert vocab.selected_token_ids.tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize("draft_size", [None, 5])
def test_an_absent_size_and_the_targets_own_keep_every_token(draft_size):
    vocab = build_draft_vocab(np.zeros(5, dtype=np.int64), draft_size, 5)
    assert vocab.selected_token_ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("draft_size", [0, -3, 2.0, True, "8"])
def test_a_size_that_is_no_positive_integer_is_refused(draft_size):
    with pytest.raises(VocabError, match="positive integer"):
        build_draft_vocab(np.zeros(5, dtype=np.int64), draft_size, 5)


@pytest.mark.parametrize("draft_size", [5, 6, 2**40])
def test_a_draft_vocabulary_as_large_as_the_targets_or_larger_is_all_of_it(draft_size):
    vocab = build_draft_vocab(np.array([3, 0, 1, 0, 2]), draft_size, 5)
    assert vocab.selected_token_ids.tolist() == [0, 1, 2, 3, 4]
    assert vocab.size == vocab.target_size == 5


def test_forced_ids_beyond_the_target_are_named():
    with pytest.raises(VocabError, match=r"\[-1, 5\]"):
        build_draft_vocab(np.zeros(5, dtype=np.int64), 3, 5, [1, 5, -1])


def test_more_forced_ids_than_places_are_refused():
    with pytest.raises(VocabError, match="3 token ids are forced into a draft vocabulary of 2"):
        build_draft_vocab(np.zeros(5, dtype=np.int64), 2, 5, [0, 1, 2])


def test_counts_of_another_vocabulary_are_refused():
    with pytest.raises(VocabError, match="shape"):
        build_draft_vocab(np.zeros(6, dtype=np.int64), 2, 5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=5))
def test_counts_add_up_over_samples(samples):
    counts = np.zeros(10, dtype=np.int64)
    for sample in samples:
        add_counts(counts, np.array(sample, dtype=np.int32))
    assert counts.tolist() == [sum(sample.count(token_id) for sample in samples) for token_id in range(10)]


@pytest.mark.parametrize("wrong", [10, -1])
def test_counting_an_id_outside_the_vocabulary_names_it(wrong):
    with pytest.raises(VocabError, match=f"token id {wrong} "):
        add_counts(np.zeros(10, dtype=np.int64), np.array([3, wrong]))


def test_coverage_is_the_share_of_counted_tokens_inside():
    assert build_draft_vocab(np.array([6, 3, 1]), 2, 3).coverage() == 0.9
