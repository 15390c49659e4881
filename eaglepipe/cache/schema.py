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
import torch
import xxhash

from eaglepipe.cache.codecs.catalog import LOGICAL_DTYPES, EncodedRows, RowCodec, inline_codec, make_codec
from eaglepipe.cache.supervision.sparse import id_dtype
from eaglepipe.cache.types import CachedSample
from eaglepipe.errors import CacheError
from eaglepipe.resources import schema_folder

SCHEMA_VERSION = 1
MAX_ROW_BYTES = 2**31 - 1
SUPERVISION_COLUMNS = {"dense": "target_probs", "sparse": "target_probs", "hidden": "last_hidden_states"}
_SCALAR_TYPES = {"int32": pa.int32(), "bool": pa.bool_(), "float": pa.float32()}
_PROB_TYPES = {"fp16": pa.float16(), "fp32": pa.float32()}
_SCALE_TYPES = {torch.float16: pa.float16(), torch.float32: pa.float32()}


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
    last_hidden: str = "supervised"  # or `all`: tokens with a last hidden state, where supervision is hidden

    def __post_init__(self) -> None:
        assert self.last_hidden == "supervised" or self.supervision == "hidden"
        if self.supervision not in SUPERVISION_COLUMNS:
            known = ", ".join(SUPERVISION_COLUMNS)
            raise CacheError(f"unknown supervision {self.supervision!r}; this version reads {known}")
        if self.supervision != "hidden" and self.supervision_codec not in _PROB_TYPES:
            raise CacheError(f"probabilities are not stored as {self.supervision_codec!r}, only as {list(_PROB_TYPES)}")
        largest = max(self.aux.row_bytes, self.rows.row_bytes)  # looked up here, where an unknown codec is told
        if largest > MAX_ROW_BYTES:
            raise CacheError(f"a row of {largest:,} bytes is more than Arrow holds in one value")

    @functools.cached_property
    def aux(self) -> RowCodec:
        return make_codec(self.aux_codec, (len(self.aux_layer_ids), self.hidden_size))

    def decode_aux(self, encoded: EncodedRows) -> torch.Tensor:
        """Rows of `aux_payload` -> states [N, A, Ht] of the layers in `aux_layer_ids`."""
        return self.aux.decode(encoded)

    @functools.cached_property
    def rows(self) -> RowCodec:
        """Codec of the supervision rows: (D,) probabilities, (Ht,) hidden states, or single entries, (1,)."""
        widths = {"dense": self.draft_vocab_size, "sparse": 1, "hidden": self.hidden_size}
        return inline_codec(self.supervision_codec, (widths[self.supervision],))


@functools.cache
def shard_columns() -> tuple[dict[str, Any], ...]:
    """The columns that the schema file declares, in order."""
    return tuple(json.loads((schema_folder(SCHEMA_VERSION) / "shard.json").read_text())["columns"])


def arrow_schema(spec: ShardSpec, *, identity: str, shard: int) -> pa.Schema:
    """The schema of one shard of a cache."""
    wanted = [column for column in shard_columns() if _is_wanted(column, spec)]
    metadata = {
        "eaglepipe.schema_version": str(SCHEMA_VERSION),
        "eaglepipe.identity": identity,
        "eaglepipe.shard": str(shard),
    }
    return pa.schema([_field(column, spec) for column in wanted], metadata=metadata)


def _is_wanted(column: dict[str, Any], spec: ShardSpec) -> bool:
    conditions: dict[str, list[str]] = column.get("when", {})
    return all(getattr(spec, name) in values for name, values in conditions.items())


def _field(column: dict[str, Any], spec: ShardSpec) -> pa.Field:
    name = column["name"]
    if name == "aux_scales":
        item = pa.field("item", _SCALE_TYPES[spec.aux.scale_dtype], nullable=False)
        return pa.field(name, pa.list_(item, spec.aux.num_scales), nullable=False)
    if name == "target_ids":
        item = pa.field("item", pa.from_numpy_dtype(id_dtype(spec.draft_vocab_size)), nullable=False)
        return pa.field(name, pa.list_(item), nullable=False)
    if column["arrow_type"] in _SCALAR_TYPES:
        return pa.field(name, _SCALAR_TYPES[column["arrow_type"]], nullable=False)
    codec = spec.aux if name == "aux_hidden_states" else spec.rows
    row_type = _PROB_TYPES[codec.name] if name == "target_probs" else pa.binary(codec.row_bytes)
    arrow_type = row_type if name == "aux_hidden_states" else pa.list_(pa.field("item", row_type, nullable=False))
    shape = ["entries"] if spec.supervision == "sparse" and name == "target_probs" else list(codec.row_shape)
    metadata = {"logical_dtype": LOGICAL_DTYPES[codec.name], "codec": codec.name, "shape": json.dumps(shape)}
    if name == "last_hidden_states" and spec.last_hidden == "all":
        metadata["rows"] = "all"
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
    if field.name == "aux_scales":
        assert sample.aux_scales is not None
        child = _flat_array(field.type.value_type, sample.aux_scales.size, sample.aux_scales)
        return pa.Array.from_buffers(field.type, num_rows, [None], children=[child], null_count=0)
    if field.name == "target_ids":
        assert sample.sparse_ids is not None
        return _list_array(field, sample, sample.sparse_ids)
    if field.name in SUPERVISION_COLUMNS.values():
        payload = sample.last_hidden_payload if _has_all_rows(field) else sample.supervision_payload
        assert payload is not None
        return _list_array(field, sample, payload)
    if field.name == "tail_mass":
        values = np.zeros(num_rows, np.float32)
        values[sample.supervised] = sample.tail_mass
        return _flat_array(field.type, num_rows, values)
    values = getattr(sample, field.name)
    packed = np.packbits(values, bitorder="little") if field.type == pa.bool_() else values
    return _flat_array(field.type, num_rows, packed)


def _list_array(field: pa.Field, sample: CachedSample, values: np.ndarray[Any, Any]) -> pa.Array:
    """Lists over the sample's rows: empty where not supervised, unless all rows have theirs."""
    num_rows = len(sample.input_ids)
    items = np.zeros(num_rows, np.int64)
    items[slice(None) if _has_all_rows(field) else sample.supervised] = (
        _items_per_row(field) if sample.sparse_counts is None else sample.sparse_counts
    )
    offsets = np.concatenate([[0], np.cumsum(items)])
    assert offsets[-1] < 2**31, f"sample {sample.sample_id} is too long for one list column"
    child = _flat_array(field.type.value_type, int(offsets[-1]), values)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32))]
    return pa.Array.from_buffers(field.type, num_rows, buffers, children=[child], null_count=0)


def _flat_array(arrow_type: pa.DataType, num_rows: int, values: np.ndarray[Any, Any]) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(arrow_type, num_rows, buffers, null_count=0)


def _items_per_row(field: pa.Field) -> int:
    """List items that one supervised row takes: D numbers, or one block of bytes."""
    if pa.types.is_fixed_size_binary(field.type.value_type):
        return 1
    return int(json.loads(field.metadata[b"shape"])[0])


def _has_all_rows(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"rows") == b"all"


def batch_to_sample(batch: pa.RecordBatch, metadata: dict[str, str]) -> CachedSample:
    """The views of one record batch; read-only, and valid while the batch lives."""
    columns = {field.name: batch.column(i) for i, field in enumerate(batch.schema)}
    num_rows = batch.num_rows
    top1 = _view(columns["target_top1"], np.int32)
    supervised = top1 >= 0
    sparse = _sparse_columns(columns, supervised) if "target_ids" in columns else {}
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
        aux_scales=_scales(columns["aux_scales"]) if "aux_scales" in columns else None,
        **_supervision_rows(batch, supervised),
        **sparse,
    )


def _supervision_rows(batch: pa.RecordBatch, supervised: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The payload of the supervised rows, and of all rows where the cache keeps those."""
    name = next(name for name in SUPERVISION_COLUMNS.values() if name in batch.schema.names)
    if not _has_all_rows(batch.schema.field(name)):
        return {"supervision_payload": _supervision_payload(batch, int(supervised.sum()))}
    rows = _supervision_payload(batch, batch.num_rows)
    return {"supervision_payload": rows[supervised], "last_hidden_payload": rows}


def _supervision_payload(batch: pa.RecordBatch, num_rows: int) -> np.ndarray[Any, Any]:
    name = next(name for name in SUPERVISION_COLUMNS.values() if name in batch.schema.names)
    field, values = batch.schema.field(name), batch.column(name).values
    item_bytes = field.type.value_type.byte_width
    if "target_ids" in batch.schema.names:
        return _bytes_of(values).reshape(len(values), item_bytes)
    return _bytes_of(values).reshape(num_rows, item_bytes * _items_per_row(field))


def _sparse_columns(columns: dict[str, pa.Array], supervised: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The fields of `CachedSample` that only sparse supervision has; both lists must have the same lengths."""
    offsets = _offsets(columns["target_ids"])
    if not np.array_equal(offsets, _offsets(columns["target_probs"])):
        raise ValueError("target_ids and target_probs have different lengths")
    counts = np.diff(offsets)
    if counts[~supervised].any():
        raise ValueError("an unsupervised row has target_ids")
    ids = columns["target_ids"].values
    return {
        "sparse_ids": _bytes_of(ids).view(ids.type.to_pandas_dtype()),
        "sparse_counts": counts[supervised],
        "tail_mass": _view(columns["tail_mass"], np.float32)[supervised],
    }


def _scales(column: pa.Array) -> np.ndarray[Any, Any]:
    numbers = _bytes_of(column.values).view(column.type.value_type.to_pandas_dtype())
    return numbers.reshape(len(column), column.type.list_size)


def _offsets(column: pa.Array) -> np.ndarray[Any, Any]:
    return np.frombuffer(column.buffers()[1], np.int32, len(column) + 1)


def sample_digest(batch: pa.RecordBatch, sample_id: str, source: str) -> str:
    """xxh3_128 over the sample's id, source, row count and every column's logical bytes in schema order."""
    digest = xxhash.xxh3_128(json.dumps([sample_id, source, batch.num_rows]).encode())
    for column in batch.columns:
        for part in _logical_buffers(column):
            digest.update(part.data)
    return digest.hexdigest()


def _logical_buffers(column: pa.Array) -> Iterator[np.ndarray[Any, Any]]:
    if pa.types.is_list(column.type):
        yield _offsets(column).view(np.uint8)
        yield _bytes_of(column.values)
    elif pa.types.is_fixed_size_list(column.type):
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
