"""A cache with the last hidden state of every token: what it holds, and what the tools of the cache do with it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import token_cost
from eaglepipe.cache_tools.describe import describe_cache
from eaglepipe.cache_tools.merge import merge_caches
from eaglepipe.cache_tools.peek import peek_rows
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, ConfigError
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.training.data.source import open_caches
from tests.tiny_project import TinyProject


@pytest.fixture(scope="module")
def whole(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project's corpus with every token's state; read-only."""
    return precompute(project, tmp_path_factory.mktemp("whole"))


def precompute(project: TinyProject, root: Path, **overrides: object) -> Path:
    wanted = {"cache.root": str(root), "cache.last_hidden": "all", "cache.full_head": "true", **overrides}
    return Path(run_precompute(project.recipe(**wanted), report=lambda _: None).folder)


def states(cache: Cache, payload: np.ndarray) -> torch.Tensor:
    return cache.spec.rows.decode(EncodedRows(payload=torch.from_numpy(payload.copy()))).float()


@torch.no_grad()
def test_every_row_is_the_targets_own_last_hidden_state(project: TinyProject, whole: Path) -> None:
    cache = Cache.open(whole)
    model = AutoModelForCausalLM.from_pretrained(project.target)
    for number in (0, cache.num_samples - 1):
        sample = cache.read(number)
        ids = torch.from_numpy(sample.input_ids.copy()).long()[None]
        expected = model.model(input_ids=ids).last_hidden_state[0].to(torch.bfloat16).float()
        assert sample.last_hidden_payload is not None
        torch.testing.assert_close(states(cache, sample.last_hidden_payload), expected, rtol=1e-2, atol=1e-2)


def test_supervised_rows_are_those_of_a_cache_that_keeps_no_others(sealed_cache: Path, whole: Path) -> None:
    plain, full = Cache.open(sealed_cache), Cache.open(whole)
    assert full.identity != plain.identity and full.manifest.features == ("all_last_hidden",)
    of_name = {name: number for number, name in enumerate(full.index.sample_ids)}
    for number, name in enumerate(plain.index.sample_ids):
        one, other = plain.read(number), full.read(of_name[name])
        assert one.last_hidden_payload is None and other.last_hidden_payload is not None
        assert np.array_equal(one.supervision["last_hidden_states"], other.supervision["last_hidden_states"])
        assert np.array_equal(other.last_hidden_payload[other.supervised], other.supervision["last_hidden_states"])


def test_tools_know_it(whole: Path) -> None:
    assert verify_cache(whole, full=True).ok
    assert describe_cache(whole)["last_hidden"] == "all"
    cache = Cache.open(whole)
    rows = peek_rows(cache, cache.read(0), slice(None), top=2)
    assert sum(len(row.top) > 0 for row in rows) == cache.index.num_supervised[0]


def test_estimate_is_what_is_written(whole: Path) -> None:
    manifest = Cache.open(whole).manifest
    cost = token_cost(
        manifest.shard_spec(),
        supervised_share=manifest.supervised_tokens / manifest.tokens,
        tokens_per_sample=manifest.tokens / manifest.samples,
    )
    assert cost.by_column["last_hidden_states"] == 32 * 2 + 4
    assert manifest.bytes_per_token == pytest.approx(cost.total, rel=0.1)


def test_the_file_itself_says_that_all_rows_have_a_state(whole: Path) -> None:
    shard = next((whole / "shards").glob("*.arrow"))
    table = pa.ipc.open_file(pa.memory_map(str(shard))).read_all()
    assert table.schema.field("last_hidden_states").metadata[b"rows"] == b"all"
    assert set(pa.compute.list_value_length(table["last_hidden_states"]).to_pylist()) == {1}


def test_recoding_keeps_all_states_or_drops_them_with_hidden_supervision(whole: Path, tmp_path: Path) -> None:
    recode_cache(tmp_path / "fp8", whole, Changes(codec="fp8"))
    before, after = Cache.open(whole), Cache.open(tmp_path / "fp8")
    assert after.spec.last_hidden == "all"
    one, other = before.read(1), after.read(1)
    assert one.last_hidden_payload is not None and other.last_hidden_payload is not None
    exact, again = states(before, one.last_hidden_payload), states(after, other.last_hidden_payload)
    assert 0 < float((again - exact).abs().max()) < 0.1 * float(exact.abs().max())

    recode_cache(tmp_path / "sparse", whole, Changes(supervision="sparse"))
    sparse = Cache.open(tmp_path / "sparse")
    assert sparse.spec.last_hidden == "supervised" and sparse.read(1).last_hidden_payload is None
    assert "last_hidden" not in json.loads((tmp_path / "sparse" / "plan.json").read_text())["identity_fields"]["cache"]


def test_another_draft_vocabulary_keeps_all_states(whole: Path, tmp_path: Path) -> None:
    recode_cache(tmp_path / "small", whole, Changes(draft_size=100))
    one, other = Cache.open(whole).read(0), Cache.open(tmp_path / "small").read(0)
    assert one.last_hidden_payload is not None and other.last_hidden_payload is not None
    assert np.array_equal(one.last_hidden_payload, other.last_hidden_payload)


def test_merging_keeps_all_states_and_refuses_a_part_without_them(
    project: TinyProject, whole: Path, sealed_cache: Path, tmp_path: Path
) -> None:
    part = precompute(project, tmp_path / "part", **{"data.sources.0.max_samples": 4})
    merge_caches(tmp_path / "merged", [whole, part])
    merged = Cache.open(tmp_path / "merged")
    assert merged.spec.last_hidden == "all" and merged.read(0).last_hidden_payload is not None
    with pytest.raises(CacheError, match="last_hidden"):
        merge_caches(tmp_path / "refused", [whole, sealed_cache])
    with pytest.raises(CacheError, match="last_hidden"):
        open_caches([sealed_cache, whole])


def test_it_takes_hidden_supervision(project: TinyProject) -> None:
    with pytest.raises(ConfigError, match="last_hidden: all needs supervision: hidden, not sparse"):
        project.recipe(**{"cache.last_hidden": "all", "cache.supervision": "sparse"})
