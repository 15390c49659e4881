import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.precompute.layout import plan_groups

LENGTHS = st.lists(st.integers(1, 300), max_size=80).map(lambda values: np.array(values, dtype=np.int64))


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 1000))
def test_every_sample_is_in_exactly_one_batch_and_no_batch_exceeds_the_budget(lengths, batch_tokens):
    batches = plan_groups(lengths, batch_tokens)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= batch_tokens


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 1000), st.integers(1, 300))
def test_no_batch_mixes_lengths_across_the_split(lengths, batch_tokens, split_at):
    for batch in plan_groups(lengths, batch_tokens, split_at):
        assert len({bool(length > split_at) for length in lengths[batch]}) == 1


def test_equal_lengths_keep_their_order():
    batches = plan_groups(np.array([5, 9, 5, 5, 9]), 10)
    assert [batch.tolist() for batch in batches] == [[1], [4], [0, 2], [3]]


def test_a_sample_longer_than_the_budget_is_alone():
    assert [batch.tolist() for batch in plan_groups(np.array([3, 50, 4]), 20)] == [[1], [2], [0]]


def test_no_samples_give_no_batches():
    assert plan_groups(np.array([], dtype=np.int32), 100) == []


def test_padding_of_chat_like_lengths_is_below_three_percent():
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(180), 0.8, 1500).astype(int), 2, 1024)
    padded = sum(len(batch) * lengths[batch].max() for batch in plan_groups(lengths, 16384))
    assert 1 - lengths.sum() / padded < 0.03
