"""The interface of codecs."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """N rows as bytes: `payload` uint8 [N, row_bytes], `scales` [N, num_scales] if the codec keeps them apart."""

    payload: torch.Tensor
    scales: torch.Tensor | None = None


class RowCodec(Protocol):
    """One encoding of rows of a fixed shape."""

    @property
    def name(self) -> str: ...

    @property
    def row_shape(self) -> tuple[int, ...]: ...

    @property
    def row_bytes(self) -> int: ...

    @property
    def num_scales(self) -> int: ...

    @property
    def scale_dtype(self) -> torch.dtype: ...

    def encode(self, rows: torch.Tensor) -> EncodedRows: ...

    def decode(self, encoded: EncodedRows) -> torch.Tensor: ...
