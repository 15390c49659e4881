"""8- and 4-bit integers that outlier channels cannot spoil, and that need nothing but the row itself.

The largest values of each token and layer are outliers, stored in bfloat16 with their channels; the rest is scaled in
groups of neighbouring channels, so that a missed one harms only its group. Layers L, width W, groups G, K outliers.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from eaglepipe.cache.codecs.encoded import EncodedRows
from eaglepipe.cache.codecs.outliers import Outliers, take_outliers
from eaglepipe.errors import CacheError

# One value in this many may be an outlier.
_WIDTH_PER_OUTLIER = 64
_MAX_WIDTH = 2**15
_CPU_BLOCK_ROWS = 128  # whose steps stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class IntegerRows:
    """Rows [*layers, W] as signed integers: `x ≈ integer · scale`.

    A group's largest magnitude becomes -2^(bits-1); its scale has the sign that this needs. Bytes of a row: L·G·group
    integers, channels past W zero, two to a byte in `int4` (the first in the low half); L·K channels as uint16,
    ascending; their L·K values as bfloat16, which stand in place of the integers there.
    """

    bits: int
    group: int
    max_outliers: int
    row_shape: tuple[int, ...]
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if self.row_shape[-1] > _MAX_WIDTH:
            width = self.row_shape[-1]
            raise CacheError(f"{self.name} numbers channels with 15 bits: at most {_MAX_WIDTH}, not {width}")

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def layers(self) -> int:
        return math.prod(self.row_shape[:-1])

    @property
    def group_width(self) -> int:
        """Channels in a group: `group`, or all of a narrower row, rounded up to an even number."""
        return min(self.group, self.row_shape[-1] + self.row_shape[-1] % 2)

    @property
    def groups(self) -> int:
        """G, of one layer."""
        return -(-self.row_shape[-1] // self.group_width)

    @property
    def num_outliers(self) -> int:
        """K, of one layer."""
        return min(self.max_outliers, self.row_shape[-1] // _WIDTH_PER_OUTLIER)

    @property
    def num_scales(self) -> int:
        return self.layers * self.groups

    @property
    def row_bytes(self) -> int:
        return sum(self._parts())

    def _parts(self) -> list[int]:
        """Bytes of a row's integers, channels and values."""
        outliers = self.layers * self.num_outliers * 2
        return [self.num_scales * self.group_width * self.bits // 8, outliers, outliers]

    def encode(self, rows: torch.Tensor) -> EncodedRows:
        """[N, *row_shape] -> bytes and float16 scales; NaN and Inf stay visible after decoding."""
        if rows.device.type != "cpu" or len(rows) <= _CPU_BLOCK_ROWS:
            return self._encode(rows)
        blocks = [self._encode(block) for block in rows.split(_CPU_BLOCK_ROWS)]
        scales = torch.cat([block.scales for block in blocks if block.scales is not None])
        return EncodedRows(payload=torch.cat([block.payload for block in blocks]), scales=scales)

    def finite_rows(self, encoded: EncodedRows) -> torch.Tensor:
        """Return which rows decode to finite numbers, bool [N], without decoding them."""
        assert encoded.scales is not None
        values = encoded.payload[:, -self._parts()[-1] :] if self.num_outliers else encoded.payload[:, :0]
        outliers = values.contiguous().view(torch.bfloat16)
        return torch.isfinite(encoded.scales).all(dim=1) & torch.isfinite(outliers).all(dim=1)

    def _encode(self, rows: torch.Tensor) -> EncodedRows:
        count = rows.shape[0]
        values = rows.reshape(count, self.layers, self.row_shape[-1]).float()
        rest, outliers = take_outliers(values, self.num_outliers)
        integers, scales = self._quantise(rest)
        parts = [self._pack(integers), *outliers.to_bytes()]
        return EncodedRows(payload=torch.cat(parts, dim=1), scales=scales)

    def decode(self, encoded: EncodedRows) -> torch.Tensor:
        """Bytes -> float32 [N, *row_shape], on the bytes' device."""
        assert encoded.scales is not None
        count = encoded.payload.shape[0]
        packed, channels, apart = encoded.payload.split(self._parts(), dim=1)
        steps = self._unpack(packed).reshape(count, self.num_scales, self.group_width).float()
        padded = (steps * encoded.scales.float()[..., None]).reshape(count, self.layers, self.groups * self.group_width)
        values = padded[..., : self.row_shape[-1]]
        if self.num_outliers:
            outliers = Outliers.from_bytes(channels, apart, (count, self.layers, self.num_outliers))
            values = values.scatter(-1, outliers.channels, outliers.values.float())
        return values.reshape(count, *self.row_shape)

    def _quantise(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [N, L, W] -> int8 [N, L·G·group] and float16 [N, L·G]."""
        pad = self.groups * self.group_width - self.row_shape[-1]
        grouped = functional.pad(values, (0, pad)).reshape(values.shape[0], self.num_scales, self.group_width)
        scales = (_extremes(grouped) / -(2 ** (self.bits - 1))).to(self.scale_dtype)
        divisor = scales.float()
        steps = grouped / divisor.masked_fill(divisor == 0, torch.inf)
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        integers = steps.round().clamp(low, high).nan_to_num(0.0).to(torch.int8)
        return integers.flatten(1), scales.squeeze(-1)

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
        low = (packed << 4).contiguous().view(torch.int8) >> 4
        return torch.stack([low, signed >> 4], dim=-1).flatten(1)


def _extremes(grouped: torch.Tensor) -> torch.Tensor:
    """[..., n] -> the number of the largest magnitude, the first of several: [..., 1]."""
    if grouped.device.type != "cpu":
        return grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    high, low = grouped.amax(-1, keepdim=True), grouped.amin(-1, keepdim=True)
    extreme = torch.where(high >= -low, high, low)
    if (tied := high == -low).any():  # a search of all would cost several times the two passes
        few = grouped[tied.squeeze(-1)]
        extreme[tied] = few.gather(-1, few.abs().argmax(-1, keepdim=True)).flatten()
    return extreme
