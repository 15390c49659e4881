"""A sample as an Arrow record batch, in both directions.

Buffers pass without copies; no column has nulls; a sample's digest covers every logical byte.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from eaglepipe.cache.schema import has_every_row, items_per_row
from eaglepipe.cache.supervision.columns import NUM_ENTRIES
from eaglepipe.cache.types import CachedSample

Array = NDArray[Any]
_TOKEN_COLUMNS = {
    "input_ids": "input_ids",
    "loss_mask": "loss_mask",
    "position_mask": "position_mask",
    "target_top1": "target_top1",
    "draft_mass": "draft_mass",
    "aux_hidden_states": "aux_payload",
    "aux_scales": "aux_scales",
}
"""Fields of `CachedSample` by column; the other columns are those of its supervision."""


def sample_to_batch(sample: CachedSample, schema: pa.Schema) -> tuple[pa.RecordBatch, dict[str, str]]:
    """Return one sample as a record batch and its metadata, digest included."""
    batch = pa.RecordBatch.from_arrays([_to_array(field, sample) for field in schema], schema=schema)
    digest = sample_digest(batch, sample.sample_id, sample.source)
    return batch, {"sample_id": sample.sample_id, "source": sample.source, "xxh3_128": digest}


def _to_array(field: pa.Field, sample: CachedSample) -> pa.Array:
    num_rows = len(sample.input_ids)
    if pa.types.is_list(field.type):
        return _list_array(field, sample)
    if field.name in _TOKEN_COLUMNS:
        values = getattr(sample, _TOKEN_COLUMNS[field.name])
    else:
        values = np.zeros(num_rows, field.type.to_pandas_dtype())
        values[sample.supervised] = sample.supervision[field.name]
    if pa.types.is_fixed_size_list(field.type):
        child = _flat_array(field.type.value_type, values.size, values)
        return pa.Array.from_buffers(field.type, num_rows, [None], children=[child], null_count=0)
    packed = np.packbits(values, bitorder="little") if field.type == pa.bool_() else values
    return _flat_array(field.type, num_rows, packed)


def _list_array(field: pa.Field, sample: CachedSample) -> pa.Array:
    """Lists over the sample's rows: empty if not supervised, unless every row has an item."""
    every_row = has_every_row(field)
    values = sample.last_hidden_payload if every_row else sample.supervision[field.name]
    assert values is not None, f"sample {sample.sample_id} has no {field.name}"
    if field.metadata is None:  # numbers, not the bytes of a codec
        values = values.astype(field.type.value_type.to_pandas_dtype(), copy=False)
    num_rows, width = len(sample.input_ids), items_per_row(field)
    items = np.zeros(num_rows, np.int64)
    items[slice(None) if every_row else sample.supervised] = sample.supervision[NUM_ENTRIES] if width is None else width
    offsets = np.concatenate([[0], np.cumsum(items)])
    assert offsets[-1] < 2**31, f"sample {sample.sample_id} is too long for one list column"
    child = _flat_array(field.type.value_type, int(offsets[-1]), values)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32))]
    return pa.Array.from_buffers(field.type, num_rows, buffers, children=[child], null_count=0)


def _flat_array(arrow_type: pa.DataType, num_rows: int, values: Array) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(arrow_type, num_rows, buffers, null_count=0)


def batch_to_sample(batch: pa.RecordBatch, metadata: dict[str, str]) -> CachedSample:
    """Return views of one record batch; read-only, and valid while the batch lives.

    Raises:
        ValueError: lists whose lengths contradict each other or `target_top1`.
    """
    columns = {field.name: batch.column(i) for i, field in enumerate(batch.schema)}
    top1 = _numbers(columns["target_top1"])
    supervised, scales = top1 >= 0, columns.get("aux_scales")
    every_row = next((field for field in batch.schema if has_every_row(field)), None)
    last_hidden = None if every_row is None else _items(every_row, columns[every_row.name], batch.num_rows)
    return CachedSample(
        sample_id=metadata["sample_id"],
        source=metadata["source"],
        input_ids=_numbers(columns["input_ids"]),
        loss_mask=_bits(columns["loss_mask"]),
        supervised=supervised,
        position_mask=_bits(columns["position_mask"]),
        target_top1=top1,
        draft_mass=_numbers(columns["draft_mass"]),
        aux_payload=_bytes_of(columns["aux_hidden_states"]).reshape(batch.num_rows, -1),
        aux_scales=_numbers(scales.values).reshape(batch.num_rows, -1) if scales is not None else None,
        supervision=_supervision(batch, supervised)
        if last_hidden is None or every_row is None
        else {every_row.name: last_hidden[supervised]},
        last_hidden_payload=last_hidden,
    )


def _supervision(batch: pa.RecordBatch, supervised: NDArray[np.bool_]) -> dict[str, Array]:
    """The columns of the supervised rows, and the number of their entries if rows differ in length."""
    columns: dict[str, Array] = {}
    for field in batch.schema:
        array = batch.column(field.name)
        if field.name in _TOKEN_COLUMNS:
            continue
        if not pa.types.is_list(field.type):
            columns[field.name] = _numbers(array)[supervised]
            continue
        columns[field.name] = _items(field, array, int(supervised.sum()))
        if items_per_row(field) is None:
            entries = np.diff(_offsets(array))
            if entries[~supervised].any():
                raise ValueError(f"an unsupervised row has {field.name}")
            if not np.array_equal(columns.setdefault(NUM_ENTRIES, entries[supervised]), entries[supervised]):
                raise ValueError(f"{field.name} and another column have different lengths")
    return columns


def _items(field: pa.Field, array: pa.Array, num_rows: int) -> Array:
    """The items of a list column: bytes [rows or entries, width] of a codec, or numbers [entries]."""
    if field.metadata is None:
        return _numbers(array.values)
    width = items_per_row(field)
    shape = (len(array.values), 1) if width is None else (num_rows, width)
    return _bytes_of(array.values).reshape(shape[0], shape[1] * field.type.value_type.byte_width)


def _offsets(column: pa.Array) -> NDArray[np.int32]:
    return np.frombuffer(column.buffers()[1], np.int32, len(column) + 1)


def sample_digest(batch: pa.RecordBatch, sample_id: str, source: str) -> str:
    """Return the xxh3_128 over id, source, row count and every column's logical bytes in schema order, hex."""
    digest = xxhash.xxh3_128(json.dumps([sample_id, source, batch.num_rows]).encode())
    for column in batch.columns:
        if pa.types.is_list(column.type):
            digest.update(_offsets(column).view(np.uint8).data)
        digest.update(_bytes_of(column.values if pa.types.is_nested(column.type) else column).data)
    return digest.hexdigest()


def _bytes_of(column: pa.Array) -> NDArray[np.uint8]:
    assert column.offset == 0 and column.null_count == 0
    num_bytes = (len(column) * column.type.bit_width + 7) // 8
    data = column.buffers()[1]
    return np.frombuffer(data, np.uint8, num_bytes) if num_bytes else np.empty(0, np.uint8)


def _numbers(column: pa.Array) -> Array:
    return _bytes_of(column).view(column.type.to_pandas_dtype())


def _bits(column: pa.Array) -> NDArray[np.bool_]:
    return np.unpackbits(_bytes_of(column), count=len(column), bitorder="little").view(np.bool_)
