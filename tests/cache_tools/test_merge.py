"""Merging keeps every sample as it was, drops only true repetitions, and refuses what does not belong together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglepipe.cache.manifest import Plan, load_document
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.writer import ShardWriter
from eaglepipe.cache_tools.describe import describe_cache
from eaglepipe.cache_tools.merge import merge_caches
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, ConfigError, CorruptError
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.lock import FOLDER_LOCK, write_lock
from eaglepipe.train import preview_training
from tests.cache.damage import flip, read_everything
from tests.cache.derived import digests, make_cache, samples
from tests.tiny_project import TinyProject

WHOLE = {"vocab.draft_size": "null", "data.max_length": 96, "cache.shard_bytes": "200KiB"}


@pytest.fixture(scope="module")
def parts(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two caches of one target with the whole vocabulary; the second repeats the first's four samples of one source."""
    root, rows = tmp_path_factory.mktemp("parts"), [{"path": str(path), "max_samples": 4} for path in project.sources]
    return [
        make_cache(project, root, **WHOLE, **{"data.sources": json.dumps(rows[:2])}),
        make_cache(project, root, **WHOLE, **{"data.sources": json.dumps([*rows[1:2], *rows[2:]])}),
    ]


@pytest.fixture(scope="module")
def merged(parts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "both"
    merge_caches(folder, parts)
    return folder


def test_merged_cache_is_sound_and_holds_every_sample_bit_for_bit(parts: list[Path], merged: Path) -> None:
    assert verify_cache(merged, full=True).ok
    read_everything(merged)
    assert digests(merged) == {**digests(parts[1]), **digests(parts[0])}
    order = [*Cache.open(parts[0]).index.sample_ids]
    assert [*Cache.open(merged).index.sample_ids[: len(order)]] == order


def test_repeated_samples_are_dropped_counted_and_not_in_the_vocabularys_counts(
    parts: list[Path], merged: Path
) -> None:
    repeated = digests(parts[0]).keys() & digests(parts[1]).keys()
    assert repeated
    manifest = load_manifest(merged)
    assert manifest.drops["duplicate"] == len(repeated)
    assert manifest.samples == len(digests(parts[0]).keys() | digests(parts[1]).keys())
    counts = torch.zeros(Cache.open(merged).spec.vocab_size, dtype=torch.int64)
    for sample in samples(merged).values():
        counts += torch.from_numpy(np.bincount(sample.input_ids[sample.loss_mask], minlength=len(counts)))
    assert torch.equal(Cache.open(merged).vocab.counts, counts)


def test_identity_comes_from_the_parts_and_their_order_alone(parts: list[Path], merged: Path, tmp_path: Path) -> None:
    again = merge_caches(tmp_path / "elsewhere", parts)
    turned = merge_caches(tmp_path / "turned", parts[::-1])
    plan = load_document(merged / "plan.json", Plan)
    assert again.identity == load_manifest(merged).identity == plan.identity == hash_json(plan.identity_fields)
    assert len({again.identity, turned.identity, *(load_manifest(part).identity for part in parts)}) == 4
    for path in merged.glob("shards/*"):
        assert (tmp_path / "elsewhere" / "shards" / path.name).read_bytes() == path.read_bytes()


def test_merged_cache_is_trained_from(project: TinyProject, merged: Path) -> None:
    assert preview_training(project.recipe(**{"target.path": "gone"}), [merged]).total_steps > 0


def test_a_stopped_merge_goes_on_with_the_shards_that_are_missing(
    parts: list[Path], merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, written = ShardWriter.finish, []

    def stop_after_one(self: ShardWriter) -> object:
        if written:
            raise KeyboardInterrupt
        written.append(finish(self))
        return written[0]

    folder = tmp_path / "both"
    monkeypatch.setattr(ShardWriter, "finish", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        merge_caches(folder, parts)
    assert not list(folder.rglob("*.tmp")) and not (folder / "manifest.json").exists()
    with pytest.raises(CacheError, match=r"incomplete, 1 of .*the command that made it again"):
        load_manifest(folder)
    monkeypatch.setattr(ShardWriter, "finish", finish)
    first = (folder / "shards" / "00000.arrow").stat().st_mtime_ns
    assert merge_caches(folder, parts) == load_manifest(merged).model_copy(
        update={"files": load_manifest(folder).files}
    )
    assert (folder / "shards" / "00000.arrow").stat().st_mtime_ns == first
    assert merge_caches(folder, parts) == load_manifest(folder)


def test_parts_of_another_vocabulary_or_encoding_are_refused_by_name(
    project: TinyProject, parts: list[Path], sealed_cache: Path, tmp_path: Path
) -> None:
    few = {"data.sources": json.dumps([{"path": str(project.sources[0]), "max_samples": 3}])}
    fp16 = make_cache(project, tmp_path / "fp16", **WHOLE, **few, **{"cache.aux_codec": "fp16"})
    layers = make_cache(project, tmp_path / "layers", **WHOLE, **few, **{"cache.aux_layer_ids": "[1, 4, 5]"})
    for other, field in ((sealed_cache, "draft vocabulary"), (fp16, "aux_codec"), (layers, "aux_layer_ids")):
        with pytest.raises(CacheError, match=f"differ in {field}"):
            merge_caches(tmp_path / "out", [parts[0], other])
    assert not (tmp_path / "out").exists()


def test_sparse_supervision_is_carried_over(project: TinyProject, tmp_path: Path) -> None:
    sparse = {**WHOLE, "cache.supervision": "sparse", "cache.max_entries": 9}
    rows = [{"data.sources": json.dumps([{"path": str(path), "max_samples": 3}])} for path in project.sources[:2]]
    both = [make_cache(project, tmp_path / "caches", **sparse, **source) for source in rows]
    merge_caches(tmp_path / "both", both)
    assert verify_cache(tmp_path / "both", full=True).ok
    assert digests(tmp_path / "both") == {**digests(both[0]), **digests(both[1])}
    info = describe_cache(tmp_path / "both")
    assert (info["tolerance"], info["max_entries"]) == (0.01, 9)
    other = make_cache(project, tmp_path / "caches", **{**sparse, "cache.max_entries": 8}, **rows[1])
    with pytest.raises(CacheError, match="differ in max_entries"):
        merge_caches(tmp_path / "out", [both[0], other])


def test_one_id_for_two_texts_is_refused_and_nothing_written(project: TinyProject, tmp_path: Path) -> None:
    caches = []
    for answer in ("yes", "no"):
        rows = tmp_path / answer / "rows.jsonl"
        rows.parent.mkdir()
        messages = [{"role": "user", "content": "well?"}, {"role": "assistant", "content": answer * 3}]
        rows.write_text(json.dumps({"id": "same", "messages": messages}) + "\n")
        sources = {"data.sources": json.dumps([{"path": str(rows)}])}
        caches.append(make_cache(project, tmp_path / "caches", **WHOLE, **sources))
    with pytest.raises(CacheError, match="same' is one text in"):
        merge_caches(tmp_path / "out", caches)
    assert not (tmp_path / "out").exists()


def test_the_same_cache_twice_or_a_taken_folder_is_refused(
    parts: list[Path], sealed_cache: Path, cache_copy: Path, tmp_path: Path
) -> None:
    with pytest.raises(CacheError, match="the same cache"):
        merge_caches(tmp_path / "out", [sealed_cache, cache_copy])
    with pytest.raises(CacheError, match="from itself"):
        merge_caches(parts[0], parts)
    with pytest.raises(CacheError, match="holds another cache"):
        merge_caches(cache_copy, parts)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match="other files"):
        merge_caches(tmp_path, parts)


def test_a_flipped_bit_in_a_part_is_not_carried_over(parts: list[Path], tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(parts[1], tmp_path / "damaged"))
    shard = damaged / load_manifest(damaged).shards[-1].path
    flip(shard, len(shard.read_bytes()) // 2)
    with pytest.raises(CorruptError, match=shard.name):
        merge_caches(tmp_path / "out", [parts[0], damaged])
    assert not (tmp_path / "out" / "manifest.json").exists()
    damaged = Path(shutil.copytree(parts[0], tmp_path / "damaged start"))
    flip(damaged / "target.safetensors", 2000)
    with pytest.raises(CorruptError, match=r"target\.safetensors"):
        merge_caches(tmp_path / "out2", [damaged, parts[1]])
    assert not (tmp_path / "out2" / "manifest.json").exists()


def test_second_writer_of_a_derived_cache_is_refused(parts: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "both"
    with write_lock(folder / "work" / FOLDER_LOCK, folder), pytest.raises(ConfigError, match="another process"):
        merge_caches(folder, parts)
    assert not (folder / "shards").exists()
    merge_caches(folder, parts)
    assert verify_cache(folder, full=True).ok
