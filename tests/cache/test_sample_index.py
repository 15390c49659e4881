"""The index file of a cache: equal to its sidecars, and never read unless it is theirs, byte for byte."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.samples import sidecar_index
from eaglepipe.cache.samples.index_file import INDEX_FILE
from eaglepipe.cache.samples.sidecar_index import sample_index, stored_index
from eaglepipe.cache.types import SampleIndex, join_indices
from eaglepipe.cache_tools.repair import repair_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CorruptError
from eaglepipe.training.data.order import choose_heldout, heldout_hash, layout_digest, split_samples
from tests.cache.damage import declare_current_state, rewrite
from tests.cache.many_shards import write_many_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_many_shards(folder, shards=3, samples_per_shard=40)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    for path in made.rglob("*"):
        target = tmp_path / "copy" / path.relative_to(made)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the index of caches of any size, as of large ones."""
    monkeypatch.setattr(sidecar_index, "FEW_BYTES", 0)


def assert_equal(stored: SampleIndex, read: SampleIndex) -> None:
    assert [*stored.sample_ids] == [*read.sample_ids] and stored.sources == read.sources
    for name in ("num_tokens", "num_supervised", "source_of"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(read, name))


def test_the_index_repeats_the_sidecars_and_decides_split_and_layout_alike(made: Path, indexed: None) -> None:
    manifest = load_manifest(made)
    stored, read = sample_index(made, manifest), sample_index(made, manifest, from_sidecars=True)
    assert stored.conversation_hashes is not None and read.conversation_hashes is None
    assert_equal(stored, read)
    again = pickle.loads(pickle.dumps(stored.sample_ids))
    assert again[7] == read.sample_ids[7] and stored.sample_ids[-1] == read.sample_ids[-1]
    assert layout_digest(stored) == layout_digest(read)
    for fraction in (0.0, 0.001, 0.3, 1.0):
        splits = [split_samples(i.sample_ids, fraction, stored=i.conversation_hashes) for i in (stored, read)]
        np.testing.assert_array_equal(splits[0].train, splits[1].train)
        heldout = sorted(splits[0].heldout, key=lambda sample: heldout_hash(read.sample_ids[sample]))
        for index in (stored, read):
            chosen = choose_heldout(index.sample_ids, splits[0], 3, stored=index.conversation_hashes)
            assert [*chosen] == sorted(heldout[:3])
    joined = join_indices([stored, stored])
    assert [*joined.sample_ids] == [*read.sample_ids] * 2 and len(joined.conversation_hashes) == 240


def test_an_index_of_other_bytes_is_never_read(copy: Path, indexed: None) -> None:
    manifest, path = load_manifest(copy), copy / INDEX_FILE
    expected, data = sample_index(copy, manifest, from_sidecars=True), path.read_bytes()
    generator = np.random.default_rng(0)
    for place in [*range(0, 64, 7), *generator.integers(len(data), size=40).tolist()]:
        altered = bytearray(data)
        altered[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(altered)
        assert_equal(Cache.open(copy).index, expected)
    for cut in (0, 7, 8, 200, len(data) - 1):
        path.write_bytes(data[:cut])
        assert stored_index(path, manifest) is None
    path.write_bytes(data + b"\0")
    assert stored_index(path, manifest) is None
    assert INDEX_FILE in verify_cache(copy).problems[0]
    assert repair_cache(copy).redone.keys() == {INDEX_FILE}
    assert verify_cache(copy).ok and path.read_bytes() == data
    path.unlink()  # as in caches of earlier releases
    assert_equal(Cache.open(copy).index, expected)
    assert verify_cache(copy).ok


def test_an_index_of_other_sidecars_is_never_read(copy: Path, indexed: None) -> None:
    def rename(sidecar: dict) -> None:
        sidecar["index"]["sample_ids"][3] = "another"

    rewrite(copy / "shards/00001.json", rename)
    declare_current_state(copy, sidecars_only=True)
    manifest = load_manifest(copy)
    assert stored_index(copy / INDEX_FILE, manifest) is None
    assert Cache.open(copy).index.sample_ids[43] == "another"


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [lose, cut])
def test_a_lost_or_cut_sidecar_is_refused_though_it_is_not_read(
    copy: Path, indexed: None, harm: Callable[[Path], None]
) -> None:
    harm(copy / "shards/00002.json")
    with pytest.raises(CorruptError, match=r"00002\.json"):
        Cache.open(copy)


def test_a_file_cut_while_it_is_read_is_an_error(copy: Path, indexed: None) -> None:
    index = Cache.open(copy).index
    (copy / INDEX_FILE).write_bytes(b"")
    with pytest.raises(CorruptError, match="cut since"):
        _ = index.sample_ids[5]
