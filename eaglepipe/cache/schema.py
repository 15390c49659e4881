"""The Arrow schema of a shard: the columns that `cache_schemas/v1/shard.json` declares, and their bytes a token."""

import functools
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from eaglepipe.cache.codecs.catalog import LOGICAL_DTYPES, ROTATED_CODECS, EncodedRows, RowCodec, make_codec
from eaglepipe.cache.supervision.kind import SupervisionKind, make_kind
from eaglepipe.cache.supervision.sparse import id_dtype
from eaglepipe.errors import CacheError
from eaglepipe.resources import schema_folder

SCHEMA_VERSION = 1
MAX_ROW_BYTES = 2**31 - 1
_SCALAR_TYPES = {"int32": pa.int32(), "bool": pa.bool_(), "float": pa.float32()}
_PROBABILITY_TYPES = {"fp16": pa.float16(), "fp32": pa.float32()}
_SCALE_TYPES = {torch.float16: pa.float16(), torch.float32: pa.float32()}
# Arrow's offsets (one int32 a row) and its padding and metadata, spread over a sample of a few hundred tokens.
_LIST_OFFSET_BYTES = 4.0
_BATCH_OVERHEAD_BYTES = 800


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """Everything needed to read a shard's bytes; part of the manifest.

    Raises:
        CacheError: an unknown kind of supervision or codec, or rows that Arrow cannot hold.
    """

    supervision: str
    aux_codec: str
    supervision_codec: str
    aux_layer_ids: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    draft_vocab_size: int
    last_hidden: str = "supervised"  # or `all`: tokens whose last hidden state is stored, with hidden supervision

    def __post_init__(self) -> None:
        assert self.last_hidden == "supervised" or self.supervision == "hidden"
        largest = max(self.rows.row_bytes, self.aux.row_bytes)  # an unknown kind or codec is found here
        if largest > MAX_ROW_BYTES:
            raise CacheError(f"a row of {largest:,} bytes is more than Arrow holds in one value")

    @functools.cached_property
    def aux(self) -> RowCodec:
        """The codec of aux rows, of shape (A, Ht)."""
        return make_codec(self.aux_codec, (len(self.aux_layer_ids), self.hidden_size))

    @property
    def rotates(self) -> bool:
        """Whether any of its states are in a codec that rotates."""
        return bool({self.aux_codec, self.supervision_codec} & ROTATED_CODECS)

    def decode_aux(self, encoded: EncodedRows) -> torch.Tensor:
        """Rows of `aux_payload` -> states [N, A, Ht] of the layers in `aux_layer_ids`."""
        return self.aux.decode(encoded)

    @functools.cached_property
    def kind(self) -> SupervisionKind:
        """The kind of supervision."""
        sizes = {"hidden_size": self.hidden_size, "draft_vocab_size": self.draft_vocab_size}
        return make_kind(self.supervision, self.supervision_codec, **sizes)

    @property
    def rows(self) -> RowCodec:
        """The codec of supervision rows: (D,) probabilities, (Ht,) hidden states, or single entries, (1,)."""
        return self.kind.codec


@functools.cache
def shard_columns() -> tuple[dict[str, Any], ...]:
    """Return the columns that the schema file declares, in order."""
    return tuple(json.loads((schema_folder(SCHEMA_VERSION) / "shard.json").read_text())["columns"])


def schema_files() -> dict[str, bytes]:
    """Return the contract as every cache carries it, by paths inside the cache."""
    folder = schema_folder(SCHEMA_VERSION)
    described = (*folder.glob("*.json"), folder.parent / "README.md")
    return {f"schema/{path.name}": path.read_bytes() for path in sorted(described)}


def arrow_schema(spec: ShardSpec, *, identity: str, shard: int) -> pa.Schema:
    """Return the schema of one shard of a cache."""
    metadata = {
        "eaglepipe.schema_version": str(SCHEMA_VERSION),
        "eaglepipe.identity": identity,
        "eaglepipe.shard": str(shard),
    }
    return pa.schema([_field(column, spec) for column in shard_columns() if _applies(column, spec)], metadata=metadata)


def _applies(column: dict[str, Any], spec: ShardSpec) -> bool:
    conditions: dict[str, list[str]] = column.get("when", {})
    return all(getattr(spec, name) in values for name, values in conditions.items())


def _field(column: dict[str, Any], spec: ShardSpec) -> pa.Field:
    codec = {"aux_codec": spec.aux, "supervision_codec": spec.rows}.get(column["logical_dtype"])
    arrow_type = _arrow_type(column["arrow_type"], codec, spec)
    if codec is None:
        return pa.field(column["name"], arrow_type, nullable=False)
    is_supervision = column["name"] == spec.kind.column
    shape = spec.kind.shape if is_supervision else list(codec.row_shape)
    metadata = {"logical_dtype": LOGICAL_DTYPES[codec.name], "codec": codec.name, "shape": json.dumps(shape)}
    if is_supervision and spec.last_hidden == "all":
        metadata["rows"] = "all"
    return pa.field(column["name"], arrow_type, nullable=False, metadata=metadata)


def _arrow_type(declared: str, codec: RowCodec | None, spec: ShardSpec) -> pa.DataType:
    """The type that a column has by its declaration: scalars, blocks of a codec's bytes, or lists of either."""
    if declared in _SCALAR_TYPES:
        return _SCALAR_TYPES[declared]
    if declared == "fixed_size_list<item>":
        return pa.list_(pa.field("item", _SCALE_TYPES[spec.aux.scale_dtype], nullable=False), spec.aux.num_scales)
    if codec is None:
        return pa.list_(pa.field("item", pa.from_numpy_dtype(id_dtype(spec.draft_vocab_size)), nullable=False))
    if declared == "fixed_size_binary":
        return pa.binary(codec.row_bytes)
    item = _PROBABILITY_TYPES[codec.name] if declared == "list<item>" else pa.binary(codec.row_bytes)
    return pa.list_(pa.field("item", item, nullable=False))


def items_per_row(field: pa.Field) -> int | None:
    """Return the items of a supervised row in a list column: D numbers, or one block of bytes; None if rows differ."""
    if pa.types.is_fixed_size_binary(field.type.value_type):
        return 1
    width = json.loads((field.metadata or {}).get(b"shape", b'["entries"]'))[0]
    return None if width == "entries" else int(width)


def has_every_row(field: pa.Field) -> bool:
    """Return whether a list column has an item at every token, supervised or not."""
    return (field.metadata or {}).get(b"rows") == b"all"


@dataclass(frozen=True, kw_only=True)
class TokenCost:
    """Bytes a token by column, averaged over supervised and other tokens."""

    by_column: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_column.values())


def token_cost(
    spec: ShardSpec, *, supervised_share: float, tokens_per_sample: float, entries: float = 0.0
) -> TokenCost:
    """Return the expected bytes a token of a shard with this spec.

    The figure leaves out the files that a cache has once: vocabulary, head rows, tokenizer.

    Args:
        entries: of a supervised token, with sparse supervision.
    """
    most = min(entries, spec.draft_vocab_size)
    columns = {
        field.name: _column_bytes(field, supervised_share, most) for field in arrow_schema(spec, identity="", shard=0)
    }
    return TokenCost(by_column={**columns, "metadata": _BATCH_OVERHEAD_BYTES / max(1.0, tokens_per_sample)})


def _column_bytes(field: pa.Field, supervised_share: float, entries: float) -> float:
    if pa.types.is_fixed_size_list(field.type):
        return field.type.list_size * field.type.value_type.bit_width / 8
    if not pa.types.is_list(field.type):
        return field.type.bit_width / 8
    share = 1.0 if has_every_row(field) else supervised_share
    items = items_per_row(field)
    return _LIST_OFFSET_BYTES + share * (entries if items is None else items) * (field.type.value_type.bit_width // 8)
