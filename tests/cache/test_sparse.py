"""Sparse supervision against a sort written in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.cache.supervision.sparse import SparseRule, id_dtype, sparsify, to_draft_index


def distribution(seed: int, rows: int, size: int, sharpness: float) -> torch.Tensor:
    return torch.softmax(sharpness * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)), -1)


def oracle(probs: np.ndarray, forced: list[int], tolerance: float, cap: int) -> set[int]:
    """Forced ids, then the largest, as long as the mass so far is short of 1 - tolerance and there is room."""
    kept = list(dict.fromkeys(index for index in forced if index >= 0))
    for index in np.argsort(-probs, kind="stable").tolist():
        full = probs[kept].sum(dtype=np.float64) >= 1 - tolerance and kept
        if full or len(kept) >= min(cap, len(probs)):
            break
        if index not in kept:
            kept.append(index)
    return set(kept)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([3, 17, 200]),
    sharpness=st.sampled_from([0.1, 2.0, 8.0]),
    tolerance=st.sampled_from([0.003, 0.05, 0.4]),
    cap=st.sampled_from([2, 5, 64, 1000]),
)
def test_kept_entries_are_the_oracles_and_the_tail_is_what_they_leave(
    seed: int, size: int, sharpness: float, tolerance: float, cap: int
) -> None:
    probs = distribution(seed, 6, size, sharpness)
    forced = torch.randint(-1, size, (6, 2), generator=torch.Generator().manual_seed(seed + 1))
    found = sparsify(probs, forced, SparseRule(tolerance=tolerance, max_entries=cap))
    ends = found.counts.cumsum(0).tolist()
    for row, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        ids, kept = found.ids[start:end].tolist(), found.probs[start:end].numpy()
        assert ids == sorted(set(ids)) and len(ids) <= min(cap, size)
        assert np.array_equal(kept, probs[row].numpy()[ids].astype(np.float16))
        assert set(forced[row].tolist()) - {-1} <= set(ids)
        mass = probs[row].numpy()[ids].sum(dtype=np.float64)
        assert mass >= 1 - tolerance - 1e-5 or len(ids) == cap
        expected = oracle(probs[row].numpy(), forced[row].tolist(), tolerance, cap)
        assert len(expected ^ set(ids)) <= 1, "rounding of the sum may decide about one entry"
        assert found.tail[row].item() == np.float32(max(0.0, 1 - kept.astype(np.float64).sum()))


def test_no_rows_and_no_forced_ids() -> None:
    rule = SparseRule(tolerance=0.01, max_entries=4)
    none = sparsify(torch.empty(0, 9), torch.empty(0, 2, dtype=torch.long), rule)
    assert (len(none.probs), len(none.counts)) == (0, 0)
    free = sparsify(distribution(0, 3, 9, 50.0), torch.empty(3, 0, dtype=torch.long), rule)
    assert free.counts.min() >= 1


def test_certain_distribution_is_one_entry() -> None:
    probs = torch.eye(5)
    found = sparsify(probs, torch.full((5, 1), -1), SparseRule(tolerance=0.0, max_entries=4))
    assert found.ids.tolist() == [0, 1, 2, 3, 4] and found.tail.eq(0).all()


def test_ids_are_as_narrow_as_the_vocabulary_allows() -> None:
    assert (id_dtype(2**16), id_dtype(2**16 + 1)) == (np.uint16, np.uint32)


def test_target_ids_become_draft_indices() -> None:
    selected = torch.tensor([2, 5, 7])
    assert to_draft_index(torch.tensor([[2, 3], [7, 9]]), selected).tolist() == [[0, -1], [2, -1]]


@pytest.mark.parametrize(("end_of_turn", "expected"), [(None, [[11], [12]]), (9, [[11, 9], [12, 9]])])
def test_next_token_and_end_of_turn_are_what_a_row_always_keeps(
    end_of_turn: int | None, expected: list[list[int]]
) -> None:
    ids, supervised = np.array([10, 11, 12, 13], np.int32), np.array([True, True, False, False])
    rule = SparseRule(tolerance=0.0, max_entries=4, end_of_turn=end_of_turn)
    assert rule.forced_ids(ids, supervised).tolist() == expected
