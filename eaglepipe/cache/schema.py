"""The Arrow schema of a shard, built from `cache_schemas/v1/shard.json`, and the two directions across it.

Buffers are taken and given without copies; no column has nulls; a sample's digest covers every logical byte.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from eaglepipe.cache.codecs import RowCodec, make_codec
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CacheError
from eaglepipe.resources import schema_folder

SCHEMA_VERSION = 1
SUPERVISION_COLUMNS = {"dense": "target_probs", "hidden": "last_hidden_states"}
_SCALAR_TYPES = {"int32": pa.int32(), "bool": pa.bool_(), "float": pa.float32()}
_PROB_TYPES = {"fp16": pa.float16(), "fp32": pa.float32()}


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """Everything needed to read a shard's bytes; part of the manifest."""

    supervision: str
    aux_codec: str
    supervision_codec: str
    aux_layer_ids: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    draft_vocab_size: int

    def __post_init__(self) -> None:
        if self.supervision not in SUPERVISION_COLUMNS:
            known = ", ".join(SUPERVISION_COLUMNS)
            raise CacheError(f"unknown supervision {self.supervision!r}; this version reads {known}")
        assert self.aux.row_bytes and self.rows.row_bytes, "codecs are looked up here, where an unknown one is told"

    @functools.cached_property
    def aux(self) -> RowCodec:
        return make_codec(self.aux_codec, (len(self.aux_layer_ids), self.hidden_size))

    @functools.cached_property
    def rows(self) -> RowCodec:
        """Codec of the supervision rows: (D,) probabilities or (Ht,) hidden states."""
        width = self.draft_vocab_size if self.supervision == "dense" else self.hidden_size
        return make_codec(self.supervision_codec, (width,))


@functools.cache
def shard_columns() -> tuple[dict[str, Any], ...]:
    """The columns that the schema file declares, in order."""
    return tuple(json.loads((schema_folder(SCHEMA_VERSION) / "shard.json").read_text())["columns"])


def arrow_schema(spec: ShardSpec, *, identity: str, shard: int) -> pa.Schema:
    """The schema of one shard of a cache."""
    wanted = [c for c in shard_columns() if c.get("when", {}).get("supervision") in (None, spec.supervision)]
    metadata = {
        "eaglepipe.schema_version": str(SCHEMA_VERSION),
        "eaglepipe.identity": identity,
        "eaglepipe.shard": str(shard),
    }
    return pa.schema([_field(column, spec) for column in wanted], metadata=metadata)


def _field(column: dict[str, Any], spec: ShardSpec) -> pa.Field:
    name = column["name"]
    if column["arrow_type"] in _SCALAR_TYPES:
        return pa.field(name, _SCALAR_TYPES[column["arrow_type"]], nullable=False)
    codec = spec.aux if name == "aux_hidden_states" else spec.rows
    row_type = _PROB_TYPES[codec.name] if name == "target_probs" else pa.binary(codec.row_bytes)
    arrow_type = row_type if name == "aux_hidden_states" else pa.list_(pa.field("item", row_type, nullable=False))
    logical = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[codec.name]
    metadata = {"logical_dtype": logical, "codec": codec.name, "shape": json.dumps(list(codec.row_shape))}
    return pa.field(name, arrow_type, nullable=False, metadata=metadata)


def sample_to_batch(sample: CachedSample, schema: pa.Schema) -> tuple[pa.RecordBatch, dict[str, str]]:
    """One sample as a record batch and its metadata, digest included."""
    arrays = [_to_array(field, sample) for field in schema]
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    digest = sample_digest(batch, sample.sample_id, sample.source)
    return batch, {"sample_id": sample.sample_id, "source": sample.source, "xxh3_128": digest}


def _to_array(field: pa.Field, sample: CachedSample) -> pa.Array:
    num_rows = len(sample.input_ids)
    if field.name == "aux_hidden_states":
        return _flat_array(field.type, num_rows, sample.aux_payload)
    if field.name in SUPERVISION_COLUMNS.values():
        items = np.where(sample.supervised, _items_per_row(field), 0)
        offsets = np.concatenate([[0], np.cumsum(items, dtype=np.int64)])
        assert offsets[-1] < 2**31, f"sample {sample.sample_id} is too long for one list column"
        child = _flat_array(field.type.value_type, int(offsets[-1]), sample.supervision_payload)
        buffers = [None, pa.py_buffer(offsets.astype(np.int32))]
        return pa.Array.from_buffers(field.type, num_rows, buffers, children=[child], null_count=0)
    values = getattr(sample, field.name)
    packed = np.packbits(values, bitorder="little") if field.type == pa.bool_() else values
    return _flat_array(field.type, num_rows, packed)


def _flat_array(arrow_type: pa.DataType, num_rows: int, values: np.ndarray[Any, Any]) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(arrow_type, num_rows, buffers, null_count=0)


def _items_per_row(field: pa.Field) -> int:
    """List items that one supervised row takes: D numbers, or one block of bytes."""
    if pa.types.is_fixed_size_binary(field.type.value_type):
        return 1
    return int(json.loads(field.metadata[b"shape"])[0])


def batch_to_sample(batch: pa.RecordBatch, metadata: dict[str, str]) -> CachedSample:
    """The views of one record batch; read-only, and valid while the batch lives."""
    columns = {field.name: batch.column(i) for i, field in enumerate(batch.schema)}
    num_rows = batch.num_rows
    top1 = _view(columns["target_top1"], np.int32)
    name = next(name for name in SUPERVISION_COLUMNS.values() if name in columns)
    field = batch.schema.field(name)
    payload = _bytes_of(columns[name].values)
    row_bytes = field.type.value_type.byte_width * _items_per_row(field)
    supervised = top1 >= 0
    return CachedSample(
        sample_id=metadata["sample_id"],
        source=metadata["source"],
        input_ids=_view(columns["input_ids"], np.int32),
        loss_mask=_bits(columns["loss_mask"]),
        supervised=supervised,
        position_mask=_bits(columns["position_mask"]),
        target_top1=top1,
        draft_mass=_view(columns["draft_mass"], np.float32),
        aux_payload=_bytes_of(columns["aux_hidden_states"]).reshape(num_rows, -1),
        aux_scales=None,
        supervision_payload=payload.reshape(int(supervised.sum()), row_bytes),
    )


def sample_digest(batch: pa.RecordBatch, sample_id: str, source: str) -> str:
    """xxh3_128 over the sample's id, source, row count and every column's logical bytes in schema order."""
    digest = xxhash.xxh3_128(json.dumps([sample_id, source, batch.num_rows]).encode())
    for column in batch.columns:
        for part in _logical_buffers(column):
            digest.update(part.data)
    return digest.hexdigest()


def _logical_buffers(column: pa.Array) -> Iterator[np.ndarray[Any, Any]]:
    if pa.types.is_list(column.type):
        yield np.frombuffer(column.buffers()[1], np.uint8, 4 * (len(column) + 1))
        yield _bytes_of(column.values)
    else:
        yield _bytes_of(column)


def _bytes_of(column: pa.Array) -> np.ndarray[Any, Any]:
    assert column.offset == 0 and column.null_count == 0
    num_bytes = (len(column) * column.type.bit_width + 7) // 8
    data = column.buffers()[1]
    return np.frombuffer(data, np.uint8, num_bytes) if num_bytes else np.empty(0, np.uint8)


def _view(column: pa.Array, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    return _bytes_of(column).view(dtype)


def _bits(column: pa.Array) -> np.ndarray[Any, Any]:
    return np.unpackbits(_bytes_of(column), count=len(column), bitorder="little").view(np.bool_)
