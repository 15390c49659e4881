"""States of a cache as speculators takes them: its own norm of them gives back what the cache holds."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.errors import CacheError
from eaglepipe.speculators_backend.data_folder import write_data_folder
from eaglepipe.speculators_backend.states import CacheStates, before_norm
from tests.processes import start


def rms_norm(states: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return states / states.square().mean(dim=-1, keepdim=True).add(1e-6).sqrt() * gain


@pytest.mark.parametrize("dead", [(), (3, 17)])
def test_the_norm_of_what_was_before_it_is_what_was_after_it(dead: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    gain = torch.rand(64, generator=generator) * 4 - 1
    gain[list(dead)] = 0.0
    for size in (7.0, 0.02):  # the second, where the norm's epsilon counts
        normed = rms_norm(torch.randn(50, 64, generator=generator) * size, gain)
        torch.testing.assert_close(rms_norm(before_norm(normed, gain, 1e-6), gain), normed, rtol=2e-5, atol=1e-6)
    assert not before_norm(torch.zeros(2, 64), gain, 1e-6).any()


def test_samples_and_dataset_are_those_of_the_cache(sealed_cache: Path, tmp_path: Path) -> None:
    states, cache = CacheStates(sealed_cache), Cache.open(sealed_cache)
    write_data_folder(states, tmp_path / "data")
    dataset = load_from_disk(str(tmp_path / "data"))
    assert dataset.format["type"] == "torch"
    dataset = dataset.with_format(None)
    assert len(dataset) == cache.num_samples
    gain = cache.start_tensors()["norm.weight"].float()
    for number in (0, cache.num_samples - 1):
        stored, given, row = cache.read(number), states.read(number), dataset[number]
        assert given["token_ids"].tolist() == stored.input_ids.tolist() == row["input_ids"]
        assert row["loss_mask"] == stored.supervised.astype(int).tolist() and row["seq_len"] == len(row["input_ids"])
        payload = torch.from_numpy(stored.aux_payload.copy())
        assert torch.equal(given["hidden_states"][:, :-1], cache.spec.decode_aux(EncodedRows(payload=payload)).float())
        rows = torch.from_numpy(stored.supervision["last_hidden_states"].copy())
        normed = cache.spec.rows.decode(EncodedRows(payload=rows)).float()
        supervised = torch.from_numpy(stored.supervised.copy())
        again = rms_norm(given["hidden_states"][supervised, -1], gain)
        torch.testing.assert_close(again, normed, rtol=1e-2, atol=1e-3)  # rounded rows are no norms of any state


def test_a_cache_without_last_hidden_states_is_refused(dense_cache: Path) -> None:
    with pytest.raises(CacheError, match="speculators needs last hidden states"):
        CacheStates(dense_cache)


def train_without_speculators() -> None:
    """Train in a child, where nothing of the backend has been imported yet; the entry stands for an absent package."""
    for name in [name for name in sys.modules if name.startswith(("hs_connectors", "eaglepipe.speculators_backend"))]:
        del sys.modules[name]
    sys.modules["hs_connectors"] = None  # type: ignore[assignment]
    sys.exit(import_module("eaglepipe.speculators_backend.__main__").main(["train", "--data-path", "x"]))


def test_without_speculators_the_backend_says_what_is_missing() -> None:
    done = start(train_without_speculators).wait()
    assert done.returncode == 2 and "install it (`pip install speculators`)" in done.stderr
    assert "Traceback" not in done.stderr
