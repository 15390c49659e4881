import pytest
import torch

from eaglepipe.eagle.packed_batch import PackedBatch
from tests.eagle.toy_drafts import make_document, packed, packed_batch

META = torch.device("meta")


def two_rows() -> PackedBatch:
    return packed_batch(packed([[make_document(9, 0), make_document(5, 1)], [make_document(12, 2)]], 16))


def test_a_batch_without_host_copy_is_fetched_with_the_same_values_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = two_rows()
    assert batch.on_host() is batch
    monkeypatch.setattr(PackedBatch, "device", property(lambda _: META))
    fetched = batch.on_host()
    assert fetched is not batch
    for name, tensor in batch.tensors().items():
        assert torch.equal(getattr(fetched, name), tensor) and getattr(fetched, name).dtype == tensor.dtype, name


def test_the_host_copy_stays_behind_however_often_a_batch_moves() -> None:
    batch = two_rows()
    moved = batch.to(META)
    assert moved.on_host() is batch and moved.to(META) is moved
    assert all(tensor.device == META for tensor in moved.tensors().values())
