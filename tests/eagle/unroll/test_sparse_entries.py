"""Entries one after the other, as a CPU reads them, against rectangles, as a GPU does."""

import pytest
import torch

from eaglepipe.eagle.unroll import sparse_rows
from eaglepipe.eagle.unroll.sparse_entries import Entries, flat_entries, padded_entries
from eaglepipe.eagle.unroll.sparse_rows import SparseRows, SparseTargets, split_kept

DRAFT = 40


def ragged(counts: list[int], seed: int = 0) -> SparseTargets:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randperm(DRAFT, generator=generator)[:count] for count in counts]
    probs = [torch.rand(count, generator=generator) / count for count in counts]
    return SparseTargets(
        probs=torch.cat(probs),
        ids=torch.cat(ids),
        row_offsets=torch.tensor([0, *counts]).cumsum(0),
        tail=torch.stack([1 - part.sum() for part in probs]).float(),
    )


def both(targets: SparseTargets, rows: torch.Tensor) -> tuple[Entries, Entries]:
    starts = targets.row_offsets[rows]
    counts = targets.row_offsets[rows + 1] - starts
    of = targets.probs, targets.ids, starts, counts, targets.tail[rows]
    return flat_entries(*of), padded_entries(*of, max_entries=int(targets.row_offsets.diff().max()))


@pytest.mark.parametrize("counts", [[3, 1, DRAFT, 7, 1], [1], [DRAFT, DRAFT], [2, 39, 5]])
def test_both_forms_give_the_same_rows(counts: list[int]) -> None:
    targets = ragged(counts)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(len(counts), (9,), generator=generator)  # in any order, some of them twice
    logits = (torch.randn(9, DRAFT, generator=generator) * 4).round(decimals=1)  # with equal ones
    for entries in both(targets, rows):
        values = entries.take(logits)
        top, token = entries.top(values)
        for row, target in enumerate(rows.tolist()):
            own = targets.ids[targets.row_offsets[target] : targets.row_offsets[target + 1]]
            kept = logits[row, own]
            assert top[row] == kept.max() and token[row] == own[kept == kept.max()].min()
            torch.testing.assert_close(entries.sum(values)[row], kept.sum())
            torch.testing.assert_close(entries.logsumexp(values, top)[row], kept.logsumexp(0))


@pytest.mark.parametrize("loss_dtype", [torch.float32, torch.float64])
def test_losses_do_not_depend_on_the_form(loss_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = ragged([3, 1, DRAFT, 7, 1, 20])
    rows, logits = torch.tensor([5, 0, 2, 2, 1, 4]), torch.randn(6, DRAFT, dtype=loss_dtype)
    sparse = SparseRows.of(targets)
    found = sparse.losses(logits.clone(), rows, loss_dtype)

    def rectangles(probs: torch.Tensor, ids: torch.Tensor, *bounds: torch.Tensor) -> Entries:
        return padded_entries(probs, ids, *bounds, max_entries=sparse.max_entries)

    flat_top = sparse.top_tokens()
    monkeypatch.setattr(sparse_rows, "flat_entries", rectangles)
    expected = sparse.losses(logits.clone(), rows, loss_dtype)
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(found.gradient, expected.gradient)
    assert torch.equal(found.predicted, expected.predicted) and torch.equal(flat_top, sparse.top_tokens())
    assert torch.isfinite(split_kept(sparse, logits.clone(), rows).log_partition).all()
