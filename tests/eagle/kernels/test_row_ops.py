"""Passes over logits against torch's own."""

import pytest
import torch

from eaglepipe.eagle.kernels import row_ops
from eaglepipe.eagle.kernels.row_ops import row_blocks, row_dots, softmax_in_place, take_rows


@pytest.mark.parametrize("size", [1, 5, 1025])
@pytest.mark.parametrize("distinct", [3, 1000])
def test_softmax_and_greedy_token_are_torch_s_own_with_the_lowest_of_equals(size, distinct):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randint(distinct, (20, size), generator=generator).float() / distinct
    logits[0] = 0.0
    logits[1, -1] = 2.0
    expected, first = logits.softmax(-1), (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    normaliser = logits.logsumexp(-1)
    log_partition, top, token = softmax_in_place(logits)
    assert torch.equal(token, first)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(log_partition, normaliser)
    torch.testing.assert_close(top - log_partition, expected.amax(-1).log())


def test_row_without_any_finite_logit_has_no_partition():
    log_partition, top, _ = softmax_in_place(torch.full((2, 2000), -torch.inf))
    assert log_partition.tolist() == top.tolist() == [-torch.inf] * 2


@pytest.mark.parametrize("elements", [1, 70, 10_000])
def test_blocks_cover_every_row_once(elements, monkeypatch):
    monkeypatch.setattr(row_ops, "CACHED_ELEMENTS", elements)
    for rows in (0, 1, 23):
        blocks = list(row_blocks(torch.zeros(rows, 10)))
        assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(rows))


def test_dots_of_rows_are_those_in_float64():
    first, second = torch.randn(2, 7, 5001, generator=torch.Generator().manual_seed(0))
    expected = (first.double() * second.double()).sum(-1).float()
    torch.testing.assert_close(row_dots(first, second), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [[], [3], [2, 3, 4], [2, 4, 5], [4, 3], [1, 1], [0, 1, 2, 3, 4, 5]])
def test_rows_are_those_asked_for_whether_or_not_they_are_consecutive(rows):
    matrix = torch.randn(6, 4)
    assert torch.equal(take_rows(matrix, torch.tensor(rows, dtype=torch.int64)), matrix[rows])
