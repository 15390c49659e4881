"""What a token costs on disk, column by column, before anything is computed."""

from dataclasses import dataclass

import numpy as np

from eaglepipe.cache.schema import SUPERVISION_COLUMNS, ShardSpec
from eaglepipe.cache.supervision.sparse import id_dtype

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


def token_cost(
    spec: ShardSpec, *, supervised_share: float, tokens_per_sample: float, entries: float = 0.0
) -> TokenCost:
    """Expected bytes a token of a shard with this spec.

    The figure leaves out what a cache holds once: vocabulary, head rows, tokenizer.

    Args:
        entries: of a supervised token, with sparse supervision.
    """
    scales = {"aux_scales": float(spec.aux.num_scales * spec.aux.scale_dtype.itemsize)} if spec.aux.num_scales else {}
    return TokenCost(
        by_column={
            "input_ids": 4.0,
            "loss_mask": 1 / 8,
            "position_mask": 1 / 8,
            "target_top1": 4.0,
            "draft_mass": 4.0,
            "aux_hidden_states": float(spec.aux.row_bytes),
            **scales,
            **_supervision_cost(spec, supervised_share, min(entries, spec.draft_vocab_size)),
            "metadata": _BATCH_OVERHEAD_BYTES / max(1.0, tokens_per_sample),
        }
    )


def _supervision_cost(spec: ShardSpec, supervised_share: float, entries: float) -> dict[str, float]:
    share = 1.0 if spec.last_hidden == "all" else supervised_share
    probs = _LIST_OFFSET_BYTES + share * spec.rows.row_bytes * (entries if spec.supervision == "sparse" else 1)
    if spec.supervision != "sparse":
        return {SUPERVISION_COLUMNS[spec.supervision]: probs}
    id_bytes = np.dtype(id_dtype(spec.draft_vocab_size)).itemsize
    ids = _LIST_OFFSET_BYTES + supervised_share * entries * id_bytes
    return {"target_probs": probs, "target_ids": ids, "tail_mass": 4.0}
