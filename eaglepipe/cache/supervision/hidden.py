"""Hidden supervision: the input of the target's lm_head, from which the distribution over any vocabulary follows.

Shapes: N rows, Ht the target's hidden size, D draft vocabulary.
"""

from dataclasses import dataclass

import torch

from eaglepipe.cache.codecs.catalog import EncodedRows, RowCodec, inline_codec
from eaglepipe.cache.supervision.columns import Columns
from eaglepipe.target_head import TargetHead


@dataclass(frozen=True, kw_only=True)
class HiddenSupervision:
    """Rows of Ht numbers, after the target's final norm."""

    codec: RowCodec

    name = "hidden"
    column = "last_hidden_states"
    stores_probabilities = False
    convertible_to = ("hidden", "dense", "sparse")
    codec_setting = "hidden_codec"
    settings: tuple[str, ...] = ()

    @classmethod
    def of(cls, codec: str, *, hidden_size: int, draft_vocab_size: int) -> "HiddenSupervision":
        """Raises CacheError if the codec is unknown."""
        return cls(codec=inline_codec(codec, (hidden_size,)))

    @property
    def shape(self) -> list[int | str]:
        """The shape of a row."""
        return list(self.codec.row_shape)

    def encode(self, rows: torch.Tensor, _forced: object = None, _rule: object = None) -> Columns:
        """Encode last hidden states [N, Ht]."""
        return {self.column: self.codec.encode(rows).payload}

    def finite_rows(self, columns: Columns) -> torch.Tensor:
        """Return which encoded rows are finite, bool [N]: a narrow type may overflow where the target did not."""
        return torch.isfinite(self.decode_rows(columns)).all(dim=1)

    def decode_rows(self, columns: Columns) -> torch.Tensor:
        """Return the last hidden states, [N, Ht] in the codec's dtype."""
        return self.codec.decode(EncodedRows(payload=columns[self.column]))

    def decode(self, columns: Columns, head: TargetHead | None) -> torch.Tensor:
        """Return the target's distribution over the head's rows, float32 [N, D]."""
        return self.distribution(self.decode_rows(columns), head)

    def distribution(self, rows: torch.Tensor, head: TargetHead | None) -> torch.Tensor:
        """Last hidden states -> the target's distribution over the head's rows, float32 [N, D]."""
        assert head is not None, "hidden supervision is decoded with the target's head"
        return head.probabilities(rows)
