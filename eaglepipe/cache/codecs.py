"""How rows of numbers become bytes of a shard and come back on the training device.

Encoders run on the target's device, decoders on the trainer's, so that narrow types travel the whole way.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from eaglepipe.errors import CacheError


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """N rows as bytes: `payload` uint8 [N, row_bytes], `scales` float32 [N, S] where the codec has them."""

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

    def encode(self, rows: torch.Tensor) -> EncodedRows: ...

    def decode(self, encoded: EncodedRows) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class FloatRows:
    """Rows kept in a floating-point type as they are: exact when the type is the target's own."""

    name: str
    row_shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return FLOAT_DTYPES[self.name]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.dtype.itemsize

    def encode(self, rows: torch.Tensor) -> EncodedRows:
        """[N, *row_shape] of any float dtype -> bytes on the same device."""
        flat = rows.to(self.dtype).reshape(rows.shape[0], math.prod(self.row_shape)).contiguous()
        return EncodedRows(payload=flat.view(torch.uint8))

    def decode(self, encoded: EncodedRows) -> torch.Tensor:
        """Bytes -> [N, *row_shape] in the codec's dtype, on the bytes' device, sharing their memory."""
        return encoded.payload.view(self.dtype).reshape(encoded.payload.shape[0], *self.row_shape)


FLOAT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def make_codec(name: str, row_shape: tuple[int, ...]) -> RowCodec:
    """The codec of that name for rows of that shape.

    Raises:
        CacheError: unknown name.
    """
    if name not in FLOAT_DTYPES:
        raise CacheError(f"unknown codec {name!r}; this version reads {', '.join(FLOAT_DTYPES)}")
    return FloatRows(name=name, row_shape=row_shape)
