"""The codecs by name: rows of numbers to bytes of a shard, and back on the training device.

Encoders run on the target's device, decoders on the trainer's, so that narrow types travel the whole way.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from eaglepipe.cache.codecs.encoded import EncodedRows
from eaglepipe.cache.codecs.fp8 import Fp8Rows
from eaglepipe.cache.codecs.integer import IntegerRows
from eaglepipe.cache.codecs.rotated import RotatedRows
from eaglepipe.errors import CacheError

__all__ = [
    "FLOAT_DTYPES",
    "LOGICAL_DTYPES",
    "ROTATED_CODECS",
    "EncodedRows",
    "FloatRows",
    "RowCodec",
    "inline_codec",
    "make_codec",
]


@dataclass(frozen=True, kw_only=True)
class FloatRows:
    """Rows in a floating-point type, exact if it is the target's own."""

    name: str
    row_shape: tuple[int, ...]
    num_scales: int = 0
    scale_dtype: torch.dtype = torch.float32

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

    def finite_rows(self, encoded: EncodedRows) -> torch.Tensor:
        """Return which rows are finite, bool [N]."""
        return torch.isfinite(self.decode(encoded)).flatten(1).all(dim=1)


ScaledRows = Fp8Rows | IntegerRows | RotatedRows
"""A codec whose scales are not among its rows' bytes."""


@dataclass(frozen=True, kw_only=True)
class InlineScales:
    """`inner`, each row followed by its scales, little-endian, for columns that are one block of bytes a row."""

    inner: ScaledRows
    name: str
    row_shape: tuple[int, ...]
    scale_dtype: torch.dtype
    num_scales: int = 0

    @property
    def row_bytes(self) -> int:
        return self.inner.row_bytes + self.inner.num_scales * self.scale_dtype.itemsize

    def encode(self, rows: torch.Tensor) -> EncodedRows:
        """[N, *row_shape] -> bytes [N, row_bytes]."""
        encoded = self.inner.encode(rows)
        assert encoded.scales is not None
        scales = encoded.scales.to(self.scale_dtype).contiguous().view(torch.uint8)
        return EncodedRows(payload=torch.cat([encoded.payload, scales], dim=1))

    def decode(self, encoded: EncodedRows) -> torch.Tensor:
        """Bytes [N, row_bytes] -> rows [N, *row_shape], as `inner` decodes them."""
        return self.inner.decode(self._apart(encoded))

    def finite_rows(self, encoded: EncodedRows) -> torch.Tensor:
        """Return which rows decode to finite numbers, bool [N], without decoding them."""
        return self.inner.finite_rows(self._apart(encoded))

    def _apart(self, encoded: EncodedRows) -> EncodedRows:
        """Return the rows as `inner` encodes them."""
        payload, scales = encoded.payload.split([self.inner.row_bytes, self.row_bytes - self.inner.row_bytes], dim=1)
        return EncodedRows(payload=payload.contiguous(), scales=scales.contiguous().view(self.scale_dtype))


RowCodec = FloatRows | ScaledRows | InlineScales
"""One encoding of rows of a fixed shape."""

ROTATED_BITS = (2, 3, 4, 5, 6)
ROTATED_CODECS = frozenset(f"rot{bits}" for bits in ROTATED_BITS)
FLOAT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LOGICAL_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "fp8": "float8_e4m3fn",
    "int8": "int8",
    "int4": "int4",
    **{f"rot{bits}": f"rotated_{bits}_bit" for bits in ROTATED_BITS},
}


def _rotated(bits: int, _: str, shape: tuple[int, ...]) -> RowCodec:
    return RotatedRows(bits=bits, row_shape=shape)


_CODECS: dict[str, Callable[[str, tuple[int, ...]], RowCodec]] = {
    **dict.fromkeys(FLOAT_DTYPES, lambda name, shape: FloatRows(name=name, row_shape=shape)),
    "fp8": lambda _, shape: Fp8Rows(row_shape=shape),
    "int8": lambda _, shape: IntegerRows(bits=8, group=256, max_outliers=16, row_shape=shape),
    "int4": lambda _, shape: IntegerRows(bits=4, group=32, max_outliers=16, row_shape=shape),
    **{f"rot{bits}": functools.partial(_rotated, bits) for bits in ROTATED_BITS},
}


def make_codec(name: str, row_shape: tuple[int, ...]) -> RowCodec:
    """Return the codec of that name for rows of that shape.

    Raises:
        CacheError: unknown name.
    """
    if name not in _CODECS:
        raise CacheError(f"unknown codec {name!r}; this version reads {', '.join(_CODECS)}")
    return _CODECS[name](name, row_shape)


def inline_codec(name: str, row_shape: tuple[int, ...]) -> RowCodec:
    """Return `make_codec` with scales, if any, at the end of each row's bytes, for columns without one of scales."""
    codec = make_codec(name, row_shape)
    if not isinstance(codec, ScaledRows):
        return codec
    return InlineScales(inner=codec, name=codec.name, row_shape=codec.row_shape, scale_dtype=codec.scale_dtype)
