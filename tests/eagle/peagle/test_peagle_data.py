"""COD sampling, segments and the cut into partitions."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.eagle.peagle_data import (
    CodSettings,
    Document,
    count_elements,
    draw_elements,
    find_documents,
    plan_parts,
    sample_cod,
    segment_of,
)
from tests.eagle.toy_drafts import packed_batch

masks = st.lists(st.booleans(), min_size=1, max_size=60).map(torch.tensor)
cods = st.builds(
    CodSettings,
    depths=st.integers(1, 8),
    ratio=st.floats(0.05, 1.0),
    min_ratio=st.floats(0.0, 1.0),
)


def batch_of(attention_mask, **tensors):
    return packed_batch(
        {"input_ids": attention_mask, "attention_mask": attention_mask, "loss_mask": attention_mask, **tensors}
    )


def pairs(anchors, depths):
    return list(zip(anchors.tolist(), depths.tolist(), strict=True))


def whole_chains(valid, depths):
    """Every chain there is, by the definition: all references after the anchor are supervised."""
    size = len(valid)
    return {
        (anchor, depth)
        for anchor in range(size)
        for depth in range(1, depths)
        if anchor + depth < size and all(valid[anchor + step] for step in range(1, depth + 1))
    }


@settings(max_examples=80, deadline=None, derandomize=True)
@given(valid=masks, cod=cods, seed=st.integers(0, 2**31))
def test_draws_are_chains_without_gaps_of_at_most_the_wanted_size(valid, cod, seed):
    drawn = pairs(*sample_cod(valid, cod, torch.Generator().manual_seed(seed)))
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= whole_chains(valid, cod.depths)
    assert all(depth == 1 or (anchor, depth - 1) in drawn for anchor, depth in drawn)
    for depth in range(1, cod.depths):
        of_depth = [anchor for anchor, d in drawn if d == depth]
        pool = [a for a, d in whole_chains(valid, cod.depths) if d == depth and (depth == 1 or (a, depth - 1) in drawn)]
        share = max(cod.ratio**depth, cod.min_ratio)
        assert len(of_depth) == min(len(pool), int(max(0, int(valid.sum()) - depth) * share))
        assert of_depth == sorted(of_depth)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(valid=masks, cod=cods)
def test_without_a_generator_every_chain_is_drawn(valid, cod):
    assert set(pairs(*sample_cod(valid, cod, None))) == whole_chains(valid, cod.depths)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(valid=masks, cod=cods, seed=st.integers(0, 2**31))
def test_a_draw_is_a_function_of_its_seed_alone(valid, cod, seed):
    torch.manual_seed(0)
    first = sample_cod(valid, cod, torch.Generator().manual_seed(seed))
    torch.rand(7)
    second = sample_cod(valid, cod, torch.Generator().manual_seed(seed))
    assert all(torch.equal(*both) for both in zip(first, second, strict=True))


def test_every_supervised_slot_is_drawn_as_often_as_any_other():
    valid, cod = torch.ones(20, dtype=torch.bool), CodSettings(depths=2, ratio=0.5, min_ratio=0.0)
    counts = torch.zeros(20)
    for seed in range(400):
        counts[sample_cod(valid, cod, torch.Generator().manual_seed(seed))[0]] += 1
    assert counts[19] == 0 and counts[:19].sum() == 400 * 9
    assert (counts[:19] / 400 - 9 / 19).abs().max() < 0.1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(valid=masks, cod=cods, parts=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_parts_cover_the_loss_once_and_hold_all_that_it_reads(valid, cod, parts, seed):
    (drawn,) = draw_elements(batch_of(torch.ones_like(valid)[None], loss_mask=valid[None]), cod, [seed])
    everything = pairs(drawn.anchors, drawn.depths)
    wanted = [element for element, counts in zip(everything, drawn.in_loss.tolist(), strict=True) if counts]
    covered = []
    for part in plan_parts([drawn], parts):
        held = pairs(part.anchors, part.depths)
        assert len(set(held)) == len(held)
        for place in part.rows.tolist():
            anchor, depth = held[place]
            covered.append((anchor, depth))
            assert {(slot, 0) for slot in range(anchor + 1)} | {(anchor, d) for d in range(1, depth)} <= set(held)
    assert sorted(covered) == sorted(wanted)


def test_segments_go_by_anchor_at_depth_0_and_by_the_slot_after_it_below():
    anchors, depths = torch.tensor([0, 4, 5, 9, 4, 4, 9]), torch.tensor([0, 0, 0, 0, 1, 3, 1])
    assert segment_of(anchors, depths, 10, 2).tolist() == [0, 0, 1, 1, 1, 1, 1]


def test_documents_end_where_padding_begins():
    attention = torch.tensor([[1] * 6 + [0] * 2, [1] * 8]).bool()
    lengths = torch.tensor([[4, 4], [8, 0]])
    expected = [Document(start=0, length=4), Document(start=4, length=2), Document(start=8, length=8)]
    assert find_documents(batch_of(attention, seq_lens=lengths)) == expected
    assert find_documents(batch_of(attention)) == [Document(start=0, length=6), Document(start=8, length=8)]


def test_the_label_of_a_document_s_last_slot_is_another_document_s():
    ones = torch.ones(1, 8, dtype=torch.bool)
    remaining = torch.tensor([[3, 2, 1, 0, 3, 2, 1, 0]])
    batch = batch_of(ones, seq_lens=torch.tensor([[4, 4]]), doc_remaining=remaining)
    counts = count_elements(batch, settings=CodSettings(depths=4), seeds=None)
    assert counts.tolist() == [6, 4, 2, 0]
