"""Recoding to and from rotated states: the bytes that stage 1 writes, and every profile from every other."""

from itertools import permutations
from pathlib import Path

import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.precompute.stage import run_precompute
from tests.cache.derived import digests, few, make_cache
from tests.tiny_project import TinyProject, make_project

ROTATED = {"aux_codec": "rot3", "codec": "rot6"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """A target 144 channels wide: two blocks and an outlier a layer."""
    folder = tmp_path_factory.mktemp("wide")
    return make_project(folder, rows=6, hidden_size=144, intermediate_size=32, num_hidden_layers=6)


def test_recoded_states_are_those_of_stage_1_bit_for_bit(wide: TinyProject, tmp_path: Path) -> None:
    """One sample at a time or a batch at a time: the target's own float32 states give the same samples."""
    exact = {"cache.aux_codec": "fp32", "cache.hidden_codec": "fp32"}
    source = make_cache(wide, tmp_path, **{**few(wide), **exact})
    narrow = {**few(wide), "cache.aux_codec": ROTATED["aux_codec"], "cache.hidden_codec": ROTATED["codec"]}
    made = make_cache(wide, tmp_path, **narrow)
    recode_cache(tmp_path / "recoded", source, Changes(**ROTATED))
    assert digests(tmp_path / "recoded") == digests(made)
    features = [Cache.open(folder).manifest.features for folder in (source, made, tmp_path / "recoded")]
    assert features == [(), ("rotated_states",), ("rotated_states",)]
    assert verify_cache(tmp_path / "recoded", full=True).ok


def test_rotated_states_of_every_token_have_both_features(wide: TinyProject, tmp_path: Path) -> None:
    every = {**few(wide), "cache.profile": "lean", "cache.last_hidden": "all", "cache.hidden_codec": "rot5"}
    folder = Path(run_precompute(wide.recipe(**{"cache.root": tmp_path, **every}), report=lambda _: None).folder)
    assert Cache.open(folder).manifest.features == ("all_last_hidden", "rotated_states")
    assert verify_cache(folder, full=True).ok


@pytest.mark.parametrize(("old", "new"), list(permutations([("bf16", "bf16"), ("int4", "int8"), ("rot4", "rot5")], 2)))
def test_every_encoding_of_a_profile_becomes_every_other(
    full_cache: Path, tmp_path: Path, old: tuple[str, str], new: tuple[str, str]
) -> None:
    first = Cache.open(full_cache).spec
    source = full_cache
    if old != (first.aux_codec, first.supervision_codec):
        source = tmp_path / "old"
        recode_cache(source, full_cache, Changes(aux_codec=old[0], codec=old[1]))
    report = recode_cache(tmp_path / "new", source, Changes(aux_codec=new[0], codec=new[1]))
    spec = Cache.open(tmp_path / "new").spec
    assert (spec.aux_codec, spec.supervision_codec) == new
    assert 0 < report.errors["aux_hidden_states"]["relative_rms"] < 0.2
