"""Profiles: presets of the cache section that fields override, and caches made with them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import find_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import ConfigError
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.recipe.config import PROFILES, CacheConfig
from eaglepipe.recipe.load import dump_recipe
from eaglepipe.target_head import TargetHead
from eaglepipe.train import run_training
from tests.tiny_project import TinyProject


def quiet(_: str) -> None: ...


def cache_of(project: TinyProject, root: Path, **overrides: object) -> Cache:
    recipe = project.recipe(**{"cache.root": root, **overrides})
    return Cache.open(Path(run_precompute(recipe, report=quiet).folder))


def aux_of(cache: Cache, sample: int) -> torch.Tensor:
    stored = cache.read(sample)
    scales = None if stored.aux_scales is None else torch.from_numpy(stored.aux_scales.copy())
    return cache.spec.aux.decode(EncodedRows(payload=torch.from_numpy(stored.aux_payload.copy()), scales=scales))


def test_presets_are_filled_in_and_given_fields_win(project: TinyProject) -> None:
    for name, preset in PROFILES.items():
        shown = yaml.safe_load(dump_recipe(project.recipe(**{"cache.profile": name})))["cache"]
        assert preset.items() <= shown.items()
    chosen = CacheConfig.model_validate({"profile": "tiny", "max_entries": 31})
    assert (chosen.max_entries, chosen.aux_codec) == (31, PROFILES["tiny"]["aux_codec"])
    assert CacheConfig.model_validate(chosen.model_dump()) == chosen
    with pytest.raises(ConfigError, match=r"cache\.profile"):
        project.recipe(**{"cache.profile": "small"})


def test_recipe_that_names_no_profile_gets_lean_and_null_the_fields_own_defaults() -> None:
    unnamed, null = CacheConfig(), CacheConfig(profile=None)
    assert unnamed == CacheConfig.model_validate({"profile": "lean"})
    assert PROFILES["lean"].items() <= unnamed.model_dump().items()
    assert PROFILES["exact"].items() <= null.model_dump().items()


def test_profile_is_a_name_for_settings_and_finds_the_cache_of_the_same_settings(
    project: TinyProject, tmp_path: Path
) -> None:
    made = cache_of(project, tmp_path, **{"cache.profile": "tiny"})
    spelled = {f"cache.{key}": value for key, value in PROFILES["tiny"].items()}
    assert find_cache(project.recipe(**{"cache.root": tmp_path}, **spelled)) == made.folder


@pytest.mark.parametrize(("codec", "least_decibels"), [("fp8", 30), ("int8", 38), ("int4", 15), ("rot3", 13)])
def test_cache_with_a_narrow_codec_is_the_exact_one_within_its_noise(
    project: TinyProject, tmp_path: Path, sealed_cache: Path, codec: str, least_decibels: float
) -> None:
    exact = Cache.open(sealed_cache)
    narrow = cache_of(project, tmp_path, **{"cache.aux_codec": codec, "cache.hidden_codec": codec})
    assert verify_cache(narrow.folder, full=True).ok
    assert narrow.manifest.bytes < 0.75 * exact.manifest.bytes
    ids = exact.index.sample_ids
    for sample in range(0, narrow.num_samples, 7):
        wanted = aux_of(exact, ids.index(narrow.index.sample_ids[sample])).float()
        error = (aux_of(narrow, sample) - wanted).square().sum() / wanted.square().sum()
        assert -10 * error.log10() > least_decibels
        rows = torch.from_numpy(narrow.read(sample).supervision["last_hidden_states"].copy())
        again = narrow.spec.rows.decode(EncodedRows(payload=rows))
        full = torch.from_numpy(
            exact.read(ids.index(narrow.index.sample_ids[sample])).supervision["last_hidden_states"].copy()
        )
        hidden = exact.spec.rows.decode(EncodedRows(payload=full)).float()
        assert -10 * ((again - hidden).square().sum() / hidden.square().sum()).log10() > least_decibels


def test_draft_trains_from_narrow_states(project: TinyProject, tmp_path: Path) -> None:
    cache = cache_of(project, tmp_path, **{"cache.aux_codec": "int8", "cache.hidden_codec": "fp8"})
    recipe = project.recipe(**{"train.output_dir": tmp_path / "run", "train.max_steps": 3})
    result = run_training(recipe, [cache.folder])
    assert result.steps == 3 and math.isfinite(result.heldout_loss_end or math.nan)


def test_sparse_cache_holds_the_targets_distribution_up_to_its_tolerance(
    project: TinyProject, tmp_path: Path, sealed_cache: Path
) -> None:
    exact = Cache.open(sealed_cache)
    sparse = cache_of(
        project, tmp_path, **{"cache.supervision": "sparse", "cache.tolerance": 0.3, "cache.max_entries": 100}
    )
    tensors = exact.start_tensors()
    head = TargetHead(weight=tensors["lm_head.weight"], bias=None, spec=exact.head)
    assert exact.index.sample_ids == sparse.index.sample_ids
    to_draft = {token: index for index, token in enumerate(sparse.vocab.selected_token_ids.tolist())}
    for sample in range(0, sparse.num_samples, 7):
        stored, reference = sparse.read(sample), exact.read(sample)
        columns = stored.supervision
        hidden = torch.from_numpy(reference.supervision["last_hidden_states"].copy())
        probs = head.probabilities(exact.spec.rows.decode(EncodedRows(payload=hidden))).numpy()
        kept = columns["target_probs"].view(np.float16)[:, 0]
        row_of = np.repeat(np.arange(len(columns["num_entries"])), columns["num_entries"])
        assert np.allclose(kept, probs[row_of, columns["target_ids"]], rtol=0.05, atol=1e-4), (
            "bf16 states, fp16 entries"
        )
        held = np.bincount(row_of, weights=kept, minlength=len(probs))
        assert np.allclose(held + columns["tail_mass"], 1.0, atol=1e-6)
        assert ((columns["tail_mass"] <= 0.301) | (columns["num_entries"] == 100)).all()
        following = stored.input_ids[np.flatnonzero(stored.supervised) + 1]
        for row, token in enumerate(following.tolist()):
            assert token not in to_draft or to_draft[token] in columns["target_ids"][row_of == row]


def test_estimate_is_what_the_shards_take(project: TinyProject, tmp_path: Path) -> None:
    recipe = project.recipe(**{"cache.root": tmp_path, "cache.profile": "tiny"})
    planned = run_precompute(recipe, dry_run=True, report=quiet).bytes
    written = run_precompute(recipe, report=quiet).bytes
    assert written == pytest.approx(planned, rel=0.08)
