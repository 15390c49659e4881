"""Time and memory of caches with very many samples, shards, files and sources."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from eaglepipe.cache.manifest import load_document
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.samples.sample_ids import SampleIds
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.types import SampleIndex, join_indices
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CorruptError
from eaglepipe.training.data.order import layout_digest, split_samples
from tests.cache.damage import declare_current_state, rewrite
from tests.cache.many_shards import write_many_shards


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 2 and of 32 shards of 100 samples."""
    folders = [tmp_path_factory.mktemp(f"shards-{shards}") for shards in (2, 32)]
    for folder, shards in zip(folders, (2, 32), strict=True):
        write_many_shards(folder, shards=shards, samples_per_shard=100)
    return folders


def test_open_cache_takes_at_most_100_bytes_a_sample(caches: list[Path]) -> None:
    Cache.open(caches[0])
    sizes = []
    for folder in caches:
        tracemalloc.start()
        cache = Cache.open(folder)
        split_samples(cache.index.sample_ids, 0.1)
        layout_digest(cache.index)
        sizes.append((cache.num_samples, tracemalloc.get_traced_memory()[0]))
        tracemalloc.stop()
    (few, small), (many, large) = sizes
    assert (large - small) / (many - few) <= 100


def test_a_made_cache_is_sound(caches: list[Path]) -> None:
    assert verify_cache(caches[0], full=True).ok


def test_tokens_that_a_shard_cannot_hold_are_refused_before_they_are_counted(cache_copy: Path) -> None:
    entry, listed = load_manifest(cache_copy).shards[0], load_manifest(cache_copy).sidecars[0]
    counts = load_document(cache_copy / listed.path, Sidecar).index.num_tokens
    claimed = [2**40, *counts[1:]]

    def claim(sidecar: dict) -> None:
        sidecar["index"]["num_tokens"] = claimed
        sidecar["shard"]["tokens"] = sum(claimed)

    def agree(manifest: dict) -> None:
        manifest["shards"][0]["tokens"] = sum(claimed)
        manifest["tokens"] += sum(claimed) - entry.tokens

    rewrite(cache_copy / listed.path, claim)
    rewrite(cache_copy / "manifest.json", agree)
    declare_current_state(cache_copy, sidecars_only=True)
    with pytest.raises(CorruptError, match=r"00000\.arrow: .*bytes cannot hold them"):
        Cache.open(cache_copy)


def test_files_and_sources_in_numbers_are_no_square(cache_copy: Path) -> None:
    started = time.monotonic()
    many = [{"path": f"f{number}", "bytes": 1, "xxh3_128": "0" * 32} for number in range(20_000)]
    rewrite(cache_copy / "manifest.json", lambda manifest: manifest["files"].extend([*many, *many]))
    with pytest.raises(CorruptError, match="listed twice"):
        load_manifest(cache_copy)
    names = tuple(f"source {number}" for number in range(40_000))
    part = SampleIndex(
        sample_ids=names,
        num_tokens=np.ones(40_000, np.int32),
        num_supervised=np.ones(40_000, np.int32),
        sources=names,
        source_of=np.arange(40_000),
    )
    joined = join_indices([part, part])
    assert len(joined.sources) == 40_000 and joined.source_of[-1] == 39_999
    assert time.monotonic() - started < 20


def test_sample_ids_are_those_that_went_in() -> None:
    names = ["", "a", "ü€𝄞", "half \udc80 pair", "a" * 300]
    ids = SampleIds.joined([SampleIds.of(names[:2]), tuple(names[2:])])
    assert [*ids] == names and ids == names and ids[-1] == names[-1] and ids[1:3] == tuple(names[1:3])
    assert ids != names[:-1] and ids.index("ü€𝄞") == 2 and "b" not in ids and len(SampleIds.joined([])) == 0
    with pytest.raises(IndexError):
        ids[5]
