"""Every way in which a cache's files can be damaged is found, named, and never trained on."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, CorruptError
from tests.cache.damage import flip, read_everything


def all_files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_moved_and_renamed_folder_is_sound(cache_copy: Path) -> None:
    report = verify_cache(cache_copy, full=True)
    assert report.ok and not report.notes
    read_everything(cache_copy)


def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(cache_copy: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in all_files(cache_copy):
        original = (cache_copy / name).read_bytes()
        flip(cache_copy / name, int(rng.integers(len(original))), int(rng.integers(8)))
        if name.name in ("manifest.json",):
            with pytest.raises((CorruptError, CacheError), match=name.name):
                verify_cache(cache_copy, full=True)
        else:
            report = verify_cache(cache_copy, full=True)
            assert not report.ok
            assert any(str(name) in problem for problem in report.problems), (name, report.problems)
        (cache_copy / name).write_bytes(original)
    assert verify_cache(cache_copy, full=True).ok


def test_a_flipped_bit_in_the_schema_version_is_damage_and_no_other_version(cache_copy: Path) -> None:
    manifest = cache_copy / "manifest.json"
    place = manifest.read_bytes().index(b'"schema_version": 1')
    for position in range(place, place + 19):
        flip(manifest, position)
        with pytest.raises(CorruptError, match=r"manifest\.json"):
            verify_cache(cache_copy)
        flip(manifest, position)


def test_flipped_bit_in_any_column_names_shard_and_sample_at_first_touch(cache_copy: Path) -> None:
    cache = Cache.open(cache_copy)
    shard = cache_copy / cache.manifest.shards[1].path
    original = shard.read_bytes()
    reader = pa.ipc.open_file(pa.BufferReader(original))
    sample = int(cache._first_sample[1]) + 1
    for column in reader.get_batch(1).columns:
        arrays = [column.buffers()[1]]
        if pa.types.is_list(column.type):
            arrays.append(column.values.buffers()[1])
        for buffer in arrays:
            content = buffer.to_pybytes()
            position = original.index(content) if len(content) > 8 else None
            if position is None:
                continue
            flip(shard, position + len(content) // 2, 3)
            sample_id = re.escape(cache.index.sample_ids[sample])
            with pytest.raises(CorruptError, match=f"{shard.name}.*sample 1 .*{sample_id}"):
                Cache.open(cache_copy).read(sample)
            shard.write_bytes(original)


def test_random_flips_in_a_shard_are_never_read_as_data(cache_copy: Path) -> None:
    """Each flip either is refused by the reader or changes no sample: bytes between buffers are nobody's data."""
    truth = Cache.open(cache_copy)
    samples = [truth.read(sample) for sample in range(truth.manifest.shards[0].samples)]
    kept = [{name: np.copy(value) for name, value in vars(s).items() if isinstance(value, np.ndarray)} for s in samples]
    del samples
    shard = cache_copy / truth.manifest.shards[0].path
    original = shard.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for position in rng.integers(0, len(original), 60):
        damaged = bytearray(original)
        damaged[position] ^= 1 << int(rng.integers(8))
        shard.unlink()
        shard.write_bytes(damaged)
        try:
            cache = Cache.open(cache_copy)
            for sample, columns in enumerate(kept):
                found = cache.read(sample)
                assert all(np.array_equal(getattr(found, name), value) for name, value in columns.items())
        except CorruptError:
            refused += 1
        assert not verify_cache(cache_copy, full=True).ok
    assert refused > 50


@pytest.mark.parametrize("keep", [0, 1, 7, 0.4, 0.999])
def test_truncated_shard_is_refused_when_the_cache_opens(cache_copy: Path, keep: float) -> None:
    shard = cache_copy / load_manifest(cache_copy).shards[0].path
    data = shard.read_bytes()
    shard.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CorruptError, match=f"{shard.name}.*bytes, published with"):
        Cache.open(cache_copy)


def test_zeroed_page_is_refused(cache_copy: Path) -> None:
    shard = cache_copy / load_manifest(cache_copy).shards[0].path
    data = bytearray(shard.read_bytes())
    data[8192:12288] = bytes(4096)
    shard.write_bytes(data)
    with pytest.raises(CorruptError, match=shard.name):
        read_everything(cache_copy)


def test_swapped_shards_are_refused(cache_copy: Path) -> None:
    first, second = (cache_copy / shard.path for shard in load_manifest(cache_copy).shards[:2])
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    with pytest.raises(CorruptError, match=r"0000[01]\.arrow"):
        read_everything(cache_copy)


def test_shard_of_the_same_size_from_another_cache_is_refused(cache_copy: Path) -> None:
    shard = cache_copy / load_manifest(cache_copy).shards[0].path
    identity = load_manifest(cache_copy).identity.encode()
    data = shard.read_bytes()
    assert data.count(identity) >= 1
    shard.write_bytes(data.replace(identity, b"f" * 32))
    with pytest.raises(CorruptError, match="another cache"):
        read_everything(cache_copy)


def test_missing_shard_is_named(cache_copy: Path) -> None:
    (cache_copy / load_manifest(cache_copy).shards[1].path).unlink()
    with pytest.raises(CorruptError, match=r"00001\.arrow: listed in the manifest, but missing"):
        Cache.open(cache_copy)


def test_extra_and_left_behind_files_are_reported_and_not_read(cache_copy: Path) -> None:
    shards = cache_copy / "shards"
    shutil.copyfile(shards / "00000.arrow", shards / "99999.arrow")
    (shards / ".00007.arrow.abc.tmp").write_bytes(b"half")
    report = verify_cache(cache_copy)
    assert report.ok
    assert any("99999.arrow: not part" in note for note in report.notes)
    assert any("left behind" in note for note in report.notes)
    read_everything(cache_copy)


def test_link_that_leads_out_of_the_folder_is_refused(cache_copy: Path, tmp_path: Path) -> None:
    vocab = cache_copy / "vocab.safetensors"
    shutil.copyfile(vocab, tmp_path / "outside")
    vocab.unlink()
    vocab.symlink_to(tmp_path / "outside")
    with pytest.raises(CorruptError, match="leads out"):
        Cache.open(cache_copy)


def test_link_loop_is_refused(cache_copy: Path) -> None:
    vocab = cache_copy / "vocab.safetensors"
    vocab.unlink()
    vocab.symlink_to(vocab)
    with pytest.raises(CorruptError, match="vocab"):
        Cache.open(cache_copy)


def test_cache_opened_through_a_link_is_sound(cache_copy: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(cache_copy, target_is_directory=True)
    read_everything(link)


def test_shard_replaced_by_a_shorter_one_while_open_is_noticed_when_it_is_mapped(cache_copy: Path) -> None:
    cache = Cache.open(cache_copy)
    shard = cache_copy / cache.manifest.shards[0].path
    data = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(data[:1000])
    with pytest.raises(CorruptError, match=shard.name):
        cache.read(0)


def test_shard_cut_while_it_is_mapped_is_an_error_and_no_bus_error(cache_copy: Path) -> None:
    cache = Cache.open(cache_copy)
    entry = cache.manifest.shards[0]
    cache.read(0)
    os.truncate(cache_copy / entry.path, 4096)
    with pytest.raises(CorruptError, match=rf"{entry.path}, sample {entry.samples - 1} .*cut to 4,096 bytes"):
        cache.read(entry.samples - 1)
