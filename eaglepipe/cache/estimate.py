"""What a token costs on disk, column by column, before anything is computed."""

from dataclasses import dataclass

from eaglepipe.cache.schema import ShardSpec

# Arrow's offsets (one int32 a row) and its padding and metadata, spread over a sample of a few hundred tokens.
_LIST_OFFSET_BYTES = 4.0
_BATCH_OVERHEAD_BYTES = 800


@dataclass(frozen=True, kw_only=True)
class TokenCost:
    """Bytes a token by column, averaged over tokens of which `supervised_share` are supervised."""

    by_column: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.by_column.values())


def token_cost(spec: ShardSpec, *, supervised_share: float, tokens_per_sample: float) -> TokenCost:
    """Expected bytes a token of a shard with this spec.

    The figure leaves out what a cache holds once: vocabulary, head rows, tokenizer.
    """
    rows = "target_probs" if spec.supervision == "dense" else "last_hidden_states"
    return TokenCost(
        by_column={
            "input_ids": 4.0,
            "loss_mask": 1 / 8,
            "position_mask": 1 / 8,
            "target_top1": 4.0,
            "draft_mass": 4.0,
            "aux_hidden_states": float(spec.aux.row_bytes),
            rows: _LIST_OFFSET_BYTES + supervised_share * spec.rows.row_bytes,
            "metadata": _BATCH_OVERHEAD_BYTES / max(1.0, tokens_per_sample),
        }
    )
