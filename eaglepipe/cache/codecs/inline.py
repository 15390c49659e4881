"""A codec whose scales lie at the end of each row's bytes, for columns that are one block of bytes a row."""

from dataclasses import dataclass

import torch

from eaglepipe.cache.codecs.base import EncodedRows, RowCodec


@dataclass(frozen=True, kw_only=True)
class InlineScales:
    """`inner`, each row followed by its scales, little-endian."""

    inner: RowCodec
    num_scales: int = 0

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.inner.row_shape

    @property
    def scale_dtype(self) -> torch.dtype:
        return self.inner.scale_dtype

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
        payload, scales = encoded.payload.split([self.inner.row_bytes, self.row_bytes - self.inner.row_bytes], dim=1)
        numbers = scales.contiguous().view(self.scale_dtype)
        return self.inner.decode(EncodedRows(payload=payload.contiguous(), scales=numbers))
