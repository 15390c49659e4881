"""Shards written again with other content, schema or footer, and with digests that agree."""

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eaglepipe.cache.samples.record_batch import sample_digest
from tests.fuzz.base import KINDS, Base
from tests.fuzz.subjects.cache_commands import cache_commands
from tests.fuzz.subjects.documents import declare, write_document
from tests.fuzz.values import mutate_bytes

_WORDS = (
    *("ffffffff", "00000000", "0000c07f", "0000807f", "000080bf", "0000a040"),
    *("ffffff7f", "00000080", "007e007e", "007c007c", "00480048"),
)
"""-1 and 0; NaN, infinity, -1 and 5 as float32; the largest and smallest int32; NaN, infinity and 8 as float16."""
_SHAPES = (b"[]", b"x", b'["entries"]', b"[-1]", b"[99999999]")
Batches = list[tuple[pa.RecordBatch, dict[str, str]]]


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    kind = rng.choice(tuple(KINDS))
    cache = base.copy(base.cache(kind), folder / "caches" / base.cache(kind).name)
    shard = rng.choice(sorted(cache.glob("shards/*.arrow")))
    if rng.random() < 0.3:
        shard.write_bytes(mutate_bytes(shard.read_bytes(), rng))
    else:
        _rewrite(shard, rng)
    if rng.random() < 0.9:
        _declare_shard(cache, shard)
    return cache_commands(rng, base, folder, cache, kind)


def _rewrite(shard: Path, rng: random.Random) -> None:
    schema, batches = _read(shard)
    choice = rng.randrange(10)
    if choice <= 4:
        batches = _with_values(batches, rng)
    elif choice == 5:
        schema, batches = _with_schema(schema, batches, rng)
    elif choice == 6:
        metadata = dict(schema.metadata)
        metadata[rng.choice(sorted(metadata))] = rng.choice((b"", b"x", b"\xff", b"99", b"\x1b[31m"))
        schema = schema.with_metadata(metadata)
    elif choice == 7:
        batches = rng.choice((batches[::-1], batches[:-1], [], batches * 2, batches[:1] * len(batches)))
    elif choice == 8:
        metadata = batches[0][1]
        key = rng.choice(sorted(metadata))
        metadata[key] = rng.choice(("", "x", "é" * 999, "\x1b[31m", metadata[key] * 2))
    options = pa.ipc.IpcWriteOptions(compression=rng.choice(("zstd", "lz4")) if choice == 9 else None)
    make_writer = pa.ipc.new_stream if choice == 9 and rng.random() < 0.3 else pa.ipc.new_file
    with pa.OSFile(str(shard), "wb") as sink, make_writer(sink, schema, options=options) as writer:
        for batch, metadata in batches:
            writer.write_batch(batch, custom_metadata=metadata)


def _read(shard: Path) -> tuple[pa.Schema, Batches]:
    reader = pa.ipc.open_file(pa.BufferReader(shard.read_bytes()))
    batches = []
    for number in range(reader.num_record_batches):
        read = reader.get_batch_with_custom_metadata(number)
        batches.append((read.batch, {key.decode(): value.decode() for key, value in read.custom_metadata.items()}))
    return reader.schema, batches


def _with_values(batches: Batches, rng: random.Random) -> Batches:
    """Give one column of one sample other numbers, offsets or nulls, and the sample its digest."""
    number = rng.randrange(len(batches))
    batch, metadata = batches[number]
    at = rng.randrange(batch.num_columns)
    column = _other_values(batch.column(at), rng)
    columns = [column if i == at else other for i, other in enumerate(batch.columns)]
    changed = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    with suppress(AssertionError):  # nulls, which have no digest
        metadata = {**metadata, "xxh3_128": sample_digest(changed, metadata["sample_id"], metadata["source"])}
    return [*batches[:number], (changed, metadata), *batches[number + 1 :]]


def _other_values(column: pa.Array, rng: random.Random) -> pa.Array:
    buffers = column.buffers()
    at = rng.choice([i for i, buffer in enumerate(buffers) if buffer is not None and buffer.size])
    data = bytearray(buffers[at].to_pybytes())
    word, step = bytes.fromhex(rng.choice(_WORDS)), rng.choice((4, 4, len(data)))
    for start in range(0, len(data) - 3, step) if rng.random() < 0.4 else [4 * rng.randrange(max(1, len(data) // 4))]:
        data[start : start + 4] = word
    replaced: list[Any] = [pa.py_buffer(bytes(data)) if i == at else buffer for i, buffer in enumerate(buffers)]
    if rng.random() < 0.15:
        replaced[0] = pa.py_buffer(rng.choice((b"\x00", b"\xaa", b"\xfe")) * (len(column) // 8 + 1))
    try:
        return _over_buffers(column, replaced)
    except pa.ArrowInvalid:
        return column  # offsets that Arrow itself refuses to hold


def _over_buffers(column: pa.Array, buffers: list[Any]) -> pa.Array:
    """An array of the column's type, flat or nested once, over other buffers."""
    if not pa.types.is_nested(column.type):
        return pa.Array.from_buffers(column.type, len(column), buffers)
    own, values = 2 if pa.types.is_list(column.type) else 1, column.values
    child = pa.Array.from_buffers(values.type, len(values), buffers[own:])
    return pa.Array.from_buffers(column.type, len(column), buffers[:own], children=[child])


def _with_schema(schema: pa.Schema, batches: Batches, rng: random.Random) -> tuple[pa.Schema, Batches]:
    at = rng.randrange(len(schema))
    field, choice = schema.field(at), rng.randrange(6)
    if choice == 0:
        changed = schema.remove(at)
    elif choice == 1:
        changed = schema.set(at, field.with_name(rng.choice(("x", "", "\x1b[31m", "é"))))
    elif choice == 2:
        changed = schema.set(at, field.with_nullable(True))
    elif choice == 3:
        changed = schema.set(at, field.with_metadata({b"shape": rng.choice(_SHAPES)}))
    elif choice == 4:
        changed = pa.schema([*schema, pa.field("extra", pa.int64())], metadata=schema.metadata)
    else:
        changed = pa.schema([schema.field(i) for i in range(len(schema) - 1, -1, -1)], metadata=schema.metadata)
    return changed, [(_fitted(batch, schema, changed, at, choice), metadata) for batch, metadata in batches]


def _fitted(batch: pa.RecordBatch, schema: pa.Schema, changed: pa.Schema, at: int, choice: int) -> pa.RecordBatch:
    columns = list(batch.columns)
    if choice == 0:
        del columns[at]
    elif choice == 4:
        columns.append(pa.array(np.zeros(batch.num_rows, np.int64)))
    elif choice == 5:
        columns.reverse()
    return pa.RecordBatch.from_arrays(columns, schema=changed)


def _declare_shard(cache: Path, shard: Path) -> None:
    """Make sidecar and manifest declare the shard as it is now."""
    declare(cache)
    manifest = json.loads((cache / "manifest.json").read_text())
    entry = next(entry for entry in manifest["shards"] if entry["path"] == f"shards/{shard.name}")
    sidecar = json.loads(shard.with_suffix(".json").read_text())
    sidecar.pop("xxh3_128")
    write_document(shard.with_suffix(".json"), {**sidecar, "shard": entry})
    declare(cache)
