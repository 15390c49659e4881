"""The price list: which encodings it holds, and when a cache pays."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eaglepipe.cache.reader import Cache
from eaglepipe.config import PROFILES
from eaglepipe.precompute import run_precompute
from eaglepipe.target.estimate import epochs_to_pay, estimate_recipe
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


@pytest.mark.parametrize(("changed", "chosen"), [({}, "exact"), ({"cache.profile": "tiny"}, "tiny")])
def test_every_profile_is_priced_once_and_the_recipes_own_is_marked(
    project: TinyProject, changed: dict[str, str], chosen: str
) -> None:
    report = estimate_recipe(project.recipe(**changed), entries=10.0)
    assert [cost.name for cost in report.encodings] == [*PROFILES, "dense"]
    assert [cost.name for cost in report.encodings if cost.chosen] == [chosen]
    for cost in report.encodings:
        assert cost.bytes_per_token == pytest.approx(sum(cost.by_column.values()))
        assert cost.entries == (10.0 if cost.supervision == "sparse" else None)
    assert all(name in report.table() for name in PROFILES)


def test_settings_that_are_no_profile_get_their_own_line(project: TinyProject) -> None:
    report = estimate_recipe(project.recipe(**{"cache.profile": "compact", "cache.max_entries": 9}))
    assert [cost.name for cost in report.encodings if cost.chosen] == ["recipe"]
    assert report.encodings[0].entries == 9.0


def test_measured_entries_are_those_of_the_cache_that_is_then_made(project: TinyProject, tmp_path: Path) -> None:
    settings = {"cache.root": tmp_path, "cache.supervision": "sparse", "cache.tolerance": 0.4, "cache.max_entries": 120}
    recipe = project.recipe(**settings)
    measured = next(cost for cost in estimate_recipe(recipe, measure=True).encodings if cost.chosen)
    cache = Cache.open(Path(run_precompute(recipe, report=lambda _: None).folder))
    counts = [cache.read(sample).sparse_counts for sample in range(cache.num_samples)]
    mean = sum(int(count.sum()) for count in counts if count is not None) / cache.manifest.supervised_tokens
    assert measured.entries == pytest.approx(mean, rel=0.05)
