"""The price list: which encodings it holds, and when a cache pays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.estimate.prices import epochs_to_pay, estimate_recipe
from eaglepipe.recipe.config import PROFILES
from eaglepipe.target_head import TargetHead
from tests.tiny_project import TinyProject


@given(forward=st.floats(0.1, 1e6), transfer=st.floats(0.001, 1e6))
def test_cache_pays_from_the_named_epoch_on_and_not_before(forward: float, transfer: float) -> None:
    epochs = epochs_to_pay(forward, transfer)
    if epochs is None:
        assert transfer >= forward
        return
    once = max(forward, transfer)
    assert once + epochs * transfer <= epochs * forward * (1 + 1e-9)
    assert once + (epochs - 1) * transfer >= (epochs - 1) * forward * (1 - 1e-9)


@pytest.mark.parametrize(
    ("changed", "chosen"),
    [({}, "exact"), ({"cache.profile": "lean"}, "lean"), ({"cache.profile": "tiny"}, "tiny")],
)
def test_every_profile_is_priced_once_and_the_recipes_own_is_marked(
    project: TinyProject, changed: dict[str, str], chosen: str
) -> None:
    report = estimate_recipe(project.recipe(**changed), entries=10.0)
    assert [cost.name for cost in report.encodings] == [*PROFILES, "sampled", "dense"]
    assert [cost.name for cost in report.encodings if cost.chosen] == [chosen]
    for cost in report.encodings:
        assert cost.bytes_per_token == pytest.approx(sum(cost.by_column.values()))
        assert cost.entries == {"sparse": 10.0, "sampled": 8.0}.get(cost.supervision)
    assert all(name in report.table() for name in PROFILES)


def test_settings_that_are_no_profile_get_their_own_line(project: TinyProject) -> None:
    report = estimate_recipe(project.recipe(**{"cache.profile": "tiny", "cache.max_entries": 9}))
    assert [cost.name for cost in report.encodings if cost.chosen] == ["recipe"]
    assert report.encodings[0].entries == 9.0


def test_measured_entries_are_what_the_targets_distribution_takes(project: TinyProject, sealed_cache: Path) -> None:
    settings = {"cache.supervision": "sparse", "cache.tolerance": 0.4, "cache.max_entries": 120}
    measured = next(cost for cost in estimate_recipe(project.recipe(**settings), measure=True).encodings if cost.chosen)
    cache = Cache.open(sealed_cache)
    head = TargetHead(weight=cache.start_tensors()["lm_head.weight"], bias=None, spec=cache.head)
    needed = []
    for sample in range(cache.num_samples):
        payload = torch.from_numpy(cache.read(sample).supervision["last_hidden_states"].copy())
        probs = head.probabilities(cache.spec.rows.decode(EncodedRows(payload=payload))).numpy()
        needed += ((np.cumsum(-np.sort(-probs), axis=1) < 0.6).sum(axis=1) + 1).tolist()
    assert measured.entries is not None
    assert 0.97 * np.mean(needed) <= measured.entries <= 1.03 * np.mean(needed) + 2, "and two that are always kept"
