"""`cache diff` names what tells two caches apart, and nothing where they are the same."""

import json
import shutil
from pathlib import Path

import pytest

from eaglepipe.cache.compare import diff_caches
from eaglepipe.cache.manifest import Plan, load_document
from eaglepipe.cache.opening import load_manifest
from eaglepipe.errors import CacheError, CorruptError
from tests.cache.damage import flip
from tests.cache.derived import make_cache
from tests.tiny_project import TinyProject


def test_a_moved_copy_is_equal(sealed_cache: Path, cache_copy: Path) -> None:
    report = diff_caches(sealed_cache, cache_copy)
    assert report.equal and report.to_json()["equal"] is True
    assert "same identity" in report.table()


def test_each_changed_setting_is_named_with_both_values(
    project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    rows = json.dumps([{"path": str(project.sources[0]), "max_samples": 3}])
    other = make_cache(project, tmp_path, **{"cache.aux_codec": "fp16", "data.max_length": 64, "data.sources": rows})
    report = diff_caches(sealed_cache, other)
    identity = {difference["field"]: (difference["a"], difference["b"]) for difference in report.identity}
    assert identity["cache.aux_codec"] == (load_manifest(sealed_cache).spec.aux_codec, "fp16")
    assert identity["data.max_length"] == (256, 64)
    assert identity.keys() == {"cache.aux_codec", "data.max_length", "data.fingerprint", "data.sources"}
    contents = {difference["field"]: (difference["a"], difference["b"]) for difference in report.contents}
    assert contents["samples"] == (load_manifest(sealed_cache).samples, load_manifest(other).samples)
    assert contents["spec.aux_codec"] == identity["cache.aux_codec"]
    assert "cache.aux_codec: 'bf16' -> 'fp16'" in report.table()


def test_an_incomplete_cache_is_compared_by_its_plan(cache_copy: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(cache_copy, tmp_path / "begun"))
    (begun / "manifest.json").unlink()
    (begun / "shards" / "00001.json").unlink()
    report = diff_caches(cache_copy, begun)
    assert report.identity == () and not report.equal
    contents = {difference["field"]: (difference["a"], difference["b"]) for difference in report.contents}
    assert contents["complete"] == (True, False) and contents["missing_shards"] == (None, [1])
    assert "samples" not in contents
    assert diff_caches(begun, begun).equal


def test_what_is_no_cache_or_damaged_is_refused(cache_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="not a cache"):
        diff_caches(cache_copy, tmp_path)
    assert load_document(cache_copy / "plan.json", Plan)
    flip(cache_copy / "plan.json", 300)
    with pytest.raises((CorruptError, CacheError), match=r"plan\.json"):
        diff_caches(cache_copy, cache_copy)
