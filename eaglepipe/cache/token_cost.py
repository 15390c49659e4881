"""Expected bytes of a token on disk, column by column, before anything is computed."""

from dataclasses import dataclass

import pyarrow as pa

from eaglepipe.cache.schema import ShardSpec, arrow_schema, has_every_row, items_per_row

# Arrow's offsets (one int32 a row) and its padding and metadata, spread over a sample of a few hundred tokens.
_LIST_OFFSET_BYTES = 4.0
_BATCH_OVERHEAD_BYTES = 800


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
