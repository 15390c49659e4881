"""Samples that agree with their digests and that no target can have given: refused by column, token and value."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from eaglepipe.cache.codecs.catalog import RowCodec, inline_codec, make_codec
from eaglepipe.cache.codecs.soundness import find_fault
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.samples.content import ImpossibleContentError, check_content, check_structure
from eaglepipe.cache.samples.record_batch import sample_digest, sample_to_batch
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.repair import repair_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, CorruptError
from tests.cache.damage import declare_current_state, rewrite
from tests.cache.derived import few, make_cache
from tests.tiny_project import TinyProject

Change = Callable[[CachedSample], CachedSample]
NAN = float("nan")


def first_supervised(sample: CachedSample) -> int:
    return int(np.flatnonzero(sample.supervised)[0])


def with_value(name: str, value: Any, *, supervised: bool = True) -> Change:
    """Set a token's value: the first supervised one's, or the first other one's."""

    def change(sample: CachedSample) -> CachedSample:
        values = np.array(getattr(sample, name))
        values[int(np.flatnonzero(sample.supervised == supervised)[0])] = value
        return replace(sample, **{name: values})

    return change


def with_column(name: str, place: int | slice, value: Any, dtype: Any = None) -> Change:
    """Set items of a column of supervision, read as numbers of `dtype`."""

    def change(sample: CachedSample) -> CachedSample:
        values = np.array(sample.supervision[name])
        numbers = values if dtype is None else values.view(dtype)
        numbers.reshape(-1)[place] = value
        return replace(sample, supervision={**sample.supervision, name: values})

    return change


ANY_KIND: dict[str, tuple[Change, str]] = {
    "id of no token": (with_value("input_ids", 320), r"input_ids lie in .*320"),
    "id below 0": (with_value("input_ids", -1), "input_ids lie in -1"),
    "top-1 of no token": (with_value("target_top1", 2**30), "target_top1 lie in"),
    "mass below 0": (with_value("draft_mass", -1.0), "draft_mass is -1 at token"),
    "mass above 1": (with_value("draft_mass", 5.0), "draft_mass is 5 at token"),
    "mass is NaN": (with_value("draft_mass", NAN), "draft_mass is nan at token"),
    "covered and not supervised": (with_value("position_mask", True, supervised=False), "position_mask is true"),
    "masked and supervised": (with_value("loss_mask", False), "loss_mask is false"),
    "supervised at the end": (
        lambda s: replace(s, target_top1=np.append(s.target_top1[:-1], np.int32(1)), supervised=s.supervised | True),
        "at the last token",
    ),
    "covered or not": (
        lambda s: replace(s, position_mask=np.where(s.supervised, ~s.position_mask, s.position_mask)),
        "position_mask does not tell",
    ),
}
DENSE: dict[str, tuple[Change, str]] = {
    "below 0": (with_column("target_probs", 3, -0.25, np.float16), "probability -0.25 at token"),
    "above 1": (with_column("target_probs", 3, 1.5, np.float16), "probability 1.5"),
    "NaN": (with_column("target_probs", 3, NAN, np.float16), "probability nan"),
    "sum above 1": (with_column("target_probs", slice(0, 3), 0.9, np.float16), r"the sum of target_probs is [23]"),
    "sum of 0": (with_column("target_probs", slice(0, 160), 0.0, np.float16), "the sum of target_probs is 0"),
}
SPARSE: dict[str, tuple[Change, str]] = {
    "id of no draft token": (with_column("target_ids", 0, 160), r"target_ids lie in .*160"),
    "id twice": (lambda s: with_column("target_ids", 1, s.supervision["target_ids"][0])(s), "each once"),
    "below 0": (with_column("target_probs", 0, -0.25, np.float16), "probability -0.25"),
    "infinite": (with_column("target_probs", 0, np.inf, np.float16), "probability inf"),
    "sum above 1": (with_column("target_probs", slice(0, 2), 0.9, np.float16), "the sum of target_probs is"),
    "tail below 0": (with_column("tail_mass", 0, -0.5), "tail_mass is -0.5"),
    "tail is NaN": (with_column("tail_mass", 0, NAN), "tail_mass is nan"),
    "tail of another row": (with_column("tail_mass", 0, 0.999), "and tail_mass is"),
}


SAMPLED: dict[str, tuple[Change, str]] = {
    "id of no draft token": (with_column("target_ids", 0, 160), r"target_ids lie in .*160"),
    "the first id twice": (lambda s: with_column("target_ids", 1, s.supervision["target_ids"][0])(s), "each once"),
    "falling ids": (lambda s: with_column("target_ids", slice(1, 3), s.supervision["target_ids"][2:0:-1])(s), "behind"),
    "NaN": (with_column("target_probs", 0, NAN, np.float16), "probability nan"),
    "sum below 1": (with_column("target_probs", 1, 0.0, np.float16), r"the sum of target_probs is 0\.[89]"),
}


@pytest.fixture(scope="module")
def sparse_cache(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(project, tmp_path_factory.mktemp("sparse"), **few(project), **{"cache.supervision": "sparse"})


@pytest.mark.parametrize(("change", "message"), ANY_KIND.values(), ids=ANY_KIND)
def test_values_of_any_cache(full_cache: Path, change: Change, message: str) -> None:
    refused(full_cache, change, message)


@pytest.mark.parametrize(("change", "message"), DENSE.values(), ids=DENSE)
def test_dense_probabilities(dense_cache: Path, change: Change, message: str) -> None:
    refused(dense_cache, change, message)


@pytest.mark.parametrize(("change", "message"), SPARSE.values(), ids=SPARSE)
def test_sparse_entries(sparse_cache: Path, change: Change, message: str) -> None:
    refused(sparse_cache, change, message)


@pytest.fixture(scope="module")
def sampled_cache(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(project, tmp_path_factory.mktemp("sampled"), **few(project), **{"cache.supervision": "sampled"})


@pytest.mark.parametrize(("change", "message"), SAMPLED.values(), ids=SAMPLED)
def test_sampled_entries(sampled_cache: Path, change: Change, message: str) -> None:
    refused(sampled_cache, change, message)


def refused(folder: Path, change: Change, message: str) -> None:
    cache = Cache.open(folder)
    sample, is_selected = cache.read(0), cache.vocab.selected_token_mask.numpy()
    check_content(sample, cache.spec, is_selected=is_selected)
    with pytest.raises(ImpossibleContentError, match=message):
        check_content(change(sample), cache.spec, is_selected=is_selected)


ROWS = torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(0))
CODECS = [make_codec(name, (2, 128)) for name in ("bf16", "fp16", "fp32", "fp8", "int8", "int4", "rot3", "rot6")]


@pytest.mark.parametrize(
    "codec", [*CODECS, *(inline_codec(name, (128,)) for name in ("fp8", "int8", "int4", "rot4", "bf16"))]
)
def test_every_row_that_does_not_decode_to_numbers_is_found(codec: RowCodec) -> None:
    """Against the decoder itself: bytes at random decode to finite numbers, or are a fault of that row."""
    rng = np.random.default_rng(0)
    rows = ROWS if len(codec.row_shape) == 2 else ROWS[:, 0]
    encoded = codec.encode(rows)
    scales = None if encoded.scales is None else encoded.scales.numpy()
    assert find_fault(codec, encoded.payload.numpy(), scales) is None
    for extreme in (0.0, -448.0, 3e4, 1e-30, -0.0):
        even = codec.encode(torch.full_like(rows, extreme))
        assert find_fault(codec, even.payload.numpy(), None if even.scales is None else even.scales.numpy()) is None
    faults = 0
    for _ in range(200):
        payload = encoded.payload.numpy().copy()
        row = int(rng.integers(len(payload)))
        place = int(rng.integers(payload.shape[1] - 1))
        payload[row, place : place + 2] = rng.choice([0xFF, 0x7F, 0x80, 0xFC, 0x7C], 2)
        finite = True
        fault = find_fault(codec, payload, scales)
        if "outliers" not in (fault.text if fault else ""):
            given = replace(encoded, payload=torch.from_numpy(payload))
            finite = bool(torch.isfinite(codec.decode(given)).all())
        assert finite or (fault is not None and fault.row == row)
        faults += fault is not None
    assert faults > 0 or codec.name in ("int8", "int4", "rot3", "rot4", "rot6")


@pytest.mark.parametrize(
    ("name", "scale"),
    [("fp8", NAN), ("fp8", -1.0), ("fp8", np.inf), ("fp8", 0.0), ("int4", NAN), ("rot3", NAN), ("rot3", -1.0)],
)
def test_scales_that_no_encoder_gives(name: str, scale: float) -> None:
    codec = make_codec(name, (2, 128))
    encoded = codec.encode(ROWS)
    assert encoded.scales is not None
    scales = encoded.scales.numpy().copy()
    scales[3, 1] = scale
    fault = find_fault(codec, encoded.payload.numpy(), scales)
    assert fault is not None and fault.row == 3 and "scale" in fault.text


def test_nulls_and_lists_of_another_length(full_cache: Path) -> None:
    cache = Cache.open(full_cache)
    batch = batches(full_cache / cache.manifest.shards[0].path)[0][0]
    check_structure(batch)
    ids = batch.column("input_ids").to_pylist()
    with_null = batch.set_column(0, batch.schema.field(0), pa.array([None, *ids[1:]], pa.int32()))
    with pytest.raises((ImpossibleContentError, pa.ArrowInvalid), match="null"):
        check_structure(with_null)
    with pytest.raises(ImpossibleContentError, match="no token"):
        check_structure(batch.slice(0, 0))
    place = batch.schema.get_field_index("last_hidden_states")
    lists = batch.column(place)
    offsets = np.array(lists.offsets)
    row = int(np.flatnonzero(np.diff(offsets))[1])
    offsets[row] += 1  # an item of this token goes to the one before
    moved = pa.ListArray.from_arrays(pa.array(offsets), lists.values, type=lists.type)
    with pytest.raises(ImpossibleContentError, match="last_hidden_states has"):
        check_structure(batch.set_column(place, batch.schema.field(place), moved))


def batches(shard: Path) -> list[tuple[pa.RecordBatch, dict[str, str]]]:
    file = pa.ipc.open_file(pa.BufferReader(shard.read_bytes()))
    read = (file.get_batch_with_custom_metadata(number) for number in range(file.num_record_batches))
    return [(one.batch, {key.decode(): text.decode() for key, text in one.custom_metadata.items()}) for one in read]


def republish(folder: Path, shard: int, position: int, change: Change) -> Path:
    """Write a shard again with one changed sample, all digests right."""
    cache = Cache.open(folder)
    path = folder / cache.manifest.shards[shard].path
    written = batches(path)
    schema = written[0][0].schema
    first = sum(entry.samples for entry in cache.manifest.shards[:shard])
    changed, metadata = sample_to_batch(change(cache.read(first + position)), schema)
    assert metadata["xxh3_128"] == sample_digest(changed, metadata["sample_id"], metadata["source"])
    written[position] = changed, metadata
    with pa.ipc.new_file(path, schema) as writer:
        for batch, custom in written:
            writer.write_batch(batch, custom_metadata=custom)
    declare_current_state(folder)
    return path


def test_reader_verify_and_repair_name_and_redo_the_sample(cache_copy: Path, sealed_cache: Path) -> None:
    path = republish(cache_copy, 1, 2, with_value("draft_mass", 5.0))
    cache = Cache.open(cache_copy)
    sample = cache.manifest.shards[0].samples + 2
    cache.read(sample - 1)
    message = rf"{path.name}, sample 2 \(.*\): draft_mass is 5 at token \d+, outside 0\.\.1\.001; .*cache repair"
    with pytest.raises(CorruptError, match=message):
        cache.read(sample)
    assert verify_cache(cache_copy).ok, "sizes and metadata are right"
    report = verify_cache(cache_copy, full=True)
    assert len(report.problems) == 1 and "draft_mass is 5" in report.problems[0]
    repaired = repair_cache(cache_copy, report=lambda _: None)
    assert repaired.samples_computed == 1 and list(repaired.redone) == [f"shards/{path.name}"]
    assert verify_cache(cache_copy, full=True).ok
    assert path.read_bytes() == (sealed_cache / "shards" / path.name).read_bytes()


def test_empty_cache_and_other_versions_are_refused(cache_copy: Path) -> None:
    manifest = (cache_copy / "manifest.json").read_bytes()
    counts = {"samples": 0, "tokens": 0, "supervised_tokens": 0, "bytes": 0, "shards": [], "sidecars": []}
    rewrite(cache_copy / "manifest.json", lambda document: document.update(counts))
    with pytest.raises((CacheError, CorruptError), match=r"manifest\.json.*empty"):
        Cache.open(cache_copy)
    (cache_copy / "manifest.json").write_bytes(manifest)
    for name in ("plan.json", load_manifest(cache_copy).sidecars[0].path):
        original = (cache_copy / name).read_bytes()
        rewrite(cache_copy / name, lambda document: document.update(schema_version=2))
        declare_current_state(cache_copy, sidecars_only=True)
        with pytest.raises((CacheError, CorruptError), match=r"version 2|plan\.json"):
            Cache.open(cache_copy)
        (cache_copy / name).write_bytes(original)
