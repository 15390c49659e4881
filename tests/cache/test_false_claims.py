"""A manifest, a sidecar or a shard that is whole, and yet not what it should be, is refused by what is wrong in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.reader import Cache
from eaglepipe.errors import CacheError, CorruptError
from tests.cache.damage import declare_current_state, read_everything, rewrite


def test_stream_format_under_the_name_of_a_shard_is_refused(cache_copy: Path) -> None:
    manifest = load_manifest(cache_copy)
    shard = cache_copy / manifest.shards[0].path
    file = pa.ipc.open_file(pa.BufferReader(shard.read_bytes()))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, file.schema) as writer:
        writer.write_batch(file.get_batch(0))
    shard.write_bytes(sink.getvalue().to_pybytes())
    declare_current_state(cache_copy)
    with pytest.raises(CorruptError, match=shard.name):
        read_everything(cache_copy)


def test_compressed_shard_reads_the_same_with_a_warning(cache_copy: Path) -> None:
    truth = Cache.open(cache_copy).read(0)
    expected = {name: np.copy(value) for name, value in vars(truth).items() if isinstance(value, np.ndarray)}
    shard = cache_copy / load_manifest(cache_copy).shards[0].path
    _rewrite_shard(shard, pa.ipc.IpcWriteOptions(compression="lz4"))
    declare_current_state(cache_copy)
    with pytest.warns(UserWarning, match=rf"{shard.name}.*compressed"):
        found = Cache.open(cache_copy).read(0)
    assert all(np.array_equal(getattr(found, name), value) for name, value in expected.items())


@pytest.mark.parametrize("field", ["input_ids", "aux_hidden_states", "draft_mass"])
def test_column_of_another_type_is_named(cache_copy: Path, field: str) -> None:
    shard = cache_copy / load_manifest(cache_copy).shards[0].path
    file = pa.ipc.open_file(pa.BufferReader(shard.read_bytes()))
    index = file.schema.get_field_index(field)
    schema = file.schema.set(index, pa.field(field, pa.int64(), nullable=False))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for number in range(file.num_record_batches):
            columns = file.get_batch(number).columns
            columns[index] = pa.array([0] * len(columns[index]), pa.int64())
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    shard.write_bytes(sink.getvalue().to_pybytes())
    declare_current_state(cache_copy)
    with pytest.raises(CorruptError, match=f"column '{field}'"):
        read_everything(cache_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=0), "schema version 0"),
        (lambda m: m.update(schema_version=2), "schema version 2"),
        (lambda m: m.update(schema_version="1"), "schema version '1'"),
        (lambda m: m.pop("schema_version"), "schema version None"),
        (lambda m: m.update(features=["holograms"]), "holograms"),
        (lambda m: m["spec"].update(aux_codec="fp1"), "unknown codec 'fp1'"),
        (lambda m: m["spec"].update(supervision="telepathy"), "unknown supervision 'telepathy'"),
        (lambda m: m.update(samples=10**9), "samples is 1000000000"),
        (lambda m: m.update(tokens=-1), "tokens"),
        (lambda m: m.update(bytes=2**80), "bytes"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m["files"][0].update(path="../plan.json"), "leaves the cache"),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "leaves the cache"),
        (lambda m: m["files"][0].update(path="C:\\x"), "leaves the cache"),
        (lambda m: m["shards"].append(m["shards"][0]), "listed twice|sidecars"),
        (lambda m: m["shards"][0].update(samples=m["shards"][0]["samples"] - 1), "samples is"),
        (lambda m: m["files"][0].update(bytes=2**60), "published with"),
    ],
)
def test_manifest_that_lies_is_refused(
    cache_copy: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(cache_copy / "manifest.json", change)
    with pytest.raises((CorruptError, CacheError), match=message):
        Cache.open(cache_copy)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe{}",
        b"[]",
        b"{",
        b'{"schema_version": 1, "schema_version": 1}',
        b'{"schema_version": NaN}',
        b"[" * 99999,
    ],
)
def test_manifest_that_is_no_document_is_refused(cache_copy: Path, content: bytes) -> None:
    (cache_copy / "manifest.json").write_bytes(content)
    with pytest.raises((CorruptError, CacheError), match=r"manifest\.json"):
        Cache.open(cache_copy)


def test_sidecar_that_tells_fewer_samples_is_refused(cache_copy: Path) -> None:
    def fewer(sidecar: dict[str, Any]) -> None:
        last = {name: column.pop() for name, column in sidecar["index"].items() if name != "sources"}
        sidecar["shard"]["samples"] -= 1
        sidecar["shard"]["tokens"] -= last["num_tokens"]
        sidecar["shard"]["supervised_tokens"] -= last["num_supervised"]

    rewrite(cache_copy / "shards" / "00000.json", fewer)
    declare_current_state(cache_copy, sidecars_only=True)
    with pytest.raises(CorruptError, match="disagree"):
        Cache.open(cache_copy)


def _rewrite_shard(shard: Path, options: pa.ipc.IpcWriteOptions) -> None:
    file = pa.ipc.open_file(pa.BufferReader(shard.read_bytes()))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, file.schema, options=options) as writer:
        for number in range(file.num_record_batches):
            read = file.get_batch_with_custom_metadata(number)
            writer.write_batch(read.batch, custom_metadata=read.custom_metadata)
    shard.write_bytes(sink.getvalue().to_pybytes())
