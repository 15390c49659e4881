"""8- and 4-bit integers that outlier channels cannot spoil.

Channels are divided by a scale that is fixed for the whole cache (see `calibration`), then each group of neighbouring
channels of a token gets its own scale, so that a surprise harms only its group; `int4` also keeps the largest
channels apart in bfloat16. Layers L, width W, groups G a layer, K channels apart.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from eaglepipe.cache.calibration import ChannelCalibration
from eaglepipe.cache.codec_types import EncodedRows

# One channel in this many may be kept apart.
_WIDTH_PER_OUTLIER = 64


@dataclass(frozen=True, kw_only=True)
class IntegerRows:
    """Rows [*layers, W] as signed integers: `x ≈ integer · group scale · channel scale`.

    A group's largest magnitude becomes -2^(bits-1); its scale has the sign that this needs. Bytes of a row: L·G·group
    integers, channels past W zero, two to a byte in `int4` (the first in the low half), then L·K bfloat16.
    """

    bits: int
    group: int
    max_outliers: int
    row_shape: tuple[int, ...]
    calibration: ChannelCalibration | None = None
    scale_dtype: torch.dtype = torch.float16

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def layers(self) -> int:
        return math.prod(self.row_shape[:-1])

    @property
    def groups(self) -> int:
        """Groups in one layer."""
        return -(-self.row_shape[-1] // self.group_width)

    @property
    def group_width(self) -> int:
        return min(self.group, self.row_shape[-1] + self.row_shape[-1] % 2)

    @property
    def num_outliers(self) -> int:
        """K, channels of one layer that are kept apart."""
        return min(self.max_outliers, self.row_shape[-1] // _WIDTH_PER_OUTLIER)

    @property
    def num_scales(self) -> int:
        return self.layers * self.groups

    @property
    def integer_bytes(self) -> int:
        return self.num_scales * self.group_width * self.bits // 8

    @property
    def row_bytes(self) -> int:
        return self.integer_bytes + self.layers * self.num_outliers * 2

    def encode(self, rows: torch.Tensor) -> EncodedRows:
        """[N, *row_shape] -> bytes and float16 scales; NaN and Inf reach the scales, so that decoding shows them."""
        count = rows.shape[0]
        values = rows.reshape(count, self.layers, self.row_shape[-1]).float()
        apart = values.gather(-1, self._outlier_index(values))
        values = values.scatter(-1, self._outlier_index(values), 0.0) / self._channel_scales(values)
        pad = self.groups * self.group_width - self.row_shape[-1]
        grouped = functional.pad(values, (0, pad)).reshape(count, self.num_scales, self.group_width)
        extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
        scales = (extreme / -(2 ** (self.bits - 1))).to(self.scale_dtype)
        divisor = scales.float()
        steps = torch.where(divisor == 0, 0.0, grouped / torch.where(divisor == 0, 1.0, divisor))
        high = 2 ** (self.bits - 1) - 1
        integers = steps.round().clamp(-high - 1, high).nan_to_num(0.0).to(torch.int8).flatten(1)
        outliers = apart.to(torch.bfloat16).flatten(1).view(torch.uint8)
        return EncodedRows(payload=torch.cat([self._pack(integers), outliers], dim=1), scales=scales.squeeze(-1))

    def decode(self, encoded: EncodedRows) -> torch.Tensor:
        """Bytes -> float32 [N, *row_shape], on the bytes' device."""
        assert encoded.scales is not None
        count = encoded.payload.shape[0]
        packed, outliers = encoded.payload.split([self.integer_bytes, self.row_bytes - self.integer_bytes], dim=1)
        steps = self._unpack(packed).reshape(count, self.num_scales, self.group_width).float()
        values = (steps * encoded.scales.float()[..., None]).reshape(count, self.layers, self.groups * self.group_width)
        values = values[..., : self.row_shape[-1]] * self._channel_scales(values)
        if self.num_outliers:
            apart = outliers.contiguous().view(torch.bfloat16).reshape(count, self.layers, self.num_outliers).float()
            values = values.scatter(-1, self._outlier_index(values), apart)
        return values.reshape(count, *self.row_shape)

    def _pack(self, integers: torch.Tensor) -> torch.Tensor:
        """int8 [N, n] -> uint8 [N, n·bits/8]."""
        if self.bits == 8:
            return integers.view(torch.uint8)
        nibbles = integers.view(torch.uint8) & 15
        return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)

    def _unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [N, n·bits/8] -> int8 [N, n]."""
        signed = packed.contiguous().view(torch.int8)
        if self.bits == 8:
            return signed
        low = (packed << 4).view(torch.int8) >> 4
        return torch.stack([low, signed >> 4], dim=-1).flatten(1)

    def _channel_scales(self, like: torch.Tensor) -> torch.Tensor:
        assert self.calibration is not None, f"{self.name} needs the cache's calibration"
        return self.calibration.on(like.device).scales

    def _outlier_index(self, like: torch.Tensor) -> torch.Tensor:
        """int64 [N, L, K]."""
        assert self.calibration is not None, f"{self.name} needs the cache's calibration"
        return self.calibration.on(like.device).outliers.expand(like.shape[0], -1, -1)
