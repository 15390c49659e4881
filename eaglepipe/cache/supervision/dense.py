"""Dense supervision: the target's whole distribution over the draft vocabulary.

Shapes: N rows, D draft vocabulary.
"""

from dataclasses import dataclass

import torch

from eaglepipe.cache.codecs.catalog import EncodedRows, RowCodec, make_codec
from eaglepipe.cache.supervision.columns import Columns
from eaglepipe.errors import CacheError
from eaglepipe.target_head import TargetHead

PROBABILITY_CODECS = ("fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class DenseSupervision:
    """Rows of D probabilities."""

    codec: RowCodec

    name = "dense"
    column = "target_probs"
    stores_probabilities = True
    convertible_to = ("dense", "sparse")
    codec_setting = "probs_codec"
    settings: tuple[str, ...] = ()

    @classmethod
    def of(cls, codec: str, *, hidden_size: int, draft_vocab_size: int) -> "DenseSupervision":
        """Raises CacheError if the codec is not one of probabilities."""
        return cls(codec=probability_codec(codec, draft_vocab_size))

    @property
    def shape(self) -> list[int | str]:
        """The shape of a row."""
        return list(self.codec.row_shape)

    def encode(self, rows: torch.Tensor, _forced: object = None, _rule: object = None) -> Columns:
        """Encode probabilities [N, D]."""
        return {self.column: self.codec.encode(rows).payload}

    def finite_rows(self, columns: Columns) -> torch.Tensor:
        """Return which encoded rows are finite, bool [N]: a narrow type may overflow where the target did not."""
        return torch.isfinite(self.decode_rows(columns)).all(dim=1)

    def decode_rows(self, columns: Columns) -> torch.Tensor:
        """Return the probabilities as stored, [N, D] in the codec's dtype."""
        return self.codec.decode(EncodedRows(payload=columns[self.column]))

    def decode(self, columns: Columns, head: TargetHead | None) -> torch.Tensor:
        """Return the target's distribution as stored, float32 [N, D]."""
        return self.decode_rows(columns).float()

    def distribution(self, rows: torch.Tensor, head: TargetHead | None) -> torch.Tensor:
        """Scale stored rows so that they sum to 1, float32 [N, D]."""
        wide = rows.float()
        return wide / wide.sum(dim=-1, keepdim=True)


def probability_codec(name: str, width: int) -> RowCodec:
    """Return the codec of rows of `width` probabilities.

    Raises:
        CacheError: a codec that is not one of probabilities.
    """
    if name not in PROBABILITY_CODECS:
        raise CacheError(f"probabilities are not stored as {name!r}, only as {list(PROBABILITY_CODECS)}")
    return make_codec(name, (width,))
