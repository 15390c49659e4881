"""Supervision of rows of one width, each encoded as a whole.

Shapes: N rows, W numbers in each.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from eaglepipe.cache.codecs.catalog import EncodedRows, RowCodec
from eaglepipe.cache.supervision.columns import Columns
from eaglepipe.target_head import TargetHead


@dataclass(frozen=True, kw_only=True)
class RowSupervision:
    """Encoding of rows [N, W]; subclasses turn them into distributions."""

    codec: RowCodec

    name: ClassVar[str]
    column: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()

    @property
    def shape(self) -> list[int | str]:
        """The shape of a row."""
        return list(self.codec.row_shape)

    def encode(self, rows: torch.Tensor, _forced: object = None, _rule: object = None) -> Columns:
        """Encode rows [N, W]."""
        return {self.column: self.codec.encode(rows).payload}

    def finite_rows(self, columns: Columns) -> torch.Tensor:
        """Return which encoded rows are finite, bool [N]: a narrow type may overflow where the target did not."""
        return torch.isfinite(self.decode_rows(columns)).all(dim=1)

    def decode_rows(self, columns: Columns) -> torch.Tensor:
        """Return the rows as stored, [N, W] in the codec's dtype."""
        return self.codec.decode(EncodedRows(payload=columns[self.column]))

    def distribution(self, rows: torch.Tensor, head: TargetHead | None) -> torch.Tensor:
        """Turn stored rows into the target's distribution over the draft vocabulary, float32 [N, D], summing to 1."""
        raise NotImplementedError
