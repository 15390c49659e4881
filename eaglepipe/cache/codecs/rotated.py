"""Rows that are rotated and then quantised for a Gaussian: the fewest bits at which a draft learns as from exact ones.

A Hadamard rotation makes the channels of any row Gaussian, whose best scalar quantiser is known (`gaussian_levels`), so
that one scale a block does. The largest values stay apart and unrotated: rotated, one channel at 100 times the others
would drown them all in its own error. Layers L, width W, B blocks, K outliers.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.bit_packing import CODES_PER_GROUP, pack_codes, packed_bytes, unpack_values
from eaglepipe.cache.codecs.encoded import EncodedRows
from eaglepipe.cache.codecs.gaussian_levels import LARGEST, STEPS_PER_UNIT, code_table, gaussian_levels
from eaglepipe.cache.codecs.outliers import Outliers, take_outliers
from eaglepipe.cache.codecs.rotation import apply_hadamard, block_sizes, random_signs
from eaglepipe.errors import CacheError

# One value in this many may be an outlier.
_WIDTH_PER_OUTLIER = 128
_MAX_WIDTH = 2**15
# Values that are rotated at a time: few enough for a processor's cache, and for a device's memory.
_VALUES_AT_ONCE = {"cpu": 2**18}
_VALUES_AT_ONCE_ON_DEVICES = 2**25


@dataclass(frozen=True, kw_only=True)
class RotatedRows:
    """Rows [*layers, W] as `signs · H(scale · level[code]) / sqrt(n)` in each block of n channels, outliers apart.

    Bytes of a row: the codes of each layer in channel order, as `bit_packing` packs them; L·K channels as uint16,
    ascending; their L·K values as bfloat16, which stand in place of what the codes give there.
    """

    bits: int
    row_shape: tuple[int, ...]
    max_outliers: int = 8
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if (width := self.row_shape[-1]) > _MAX_WIDTH:
            raise CacheError(f"{self.name} numbers channels with 15 bits: at most {_MAX_WIDTH}, not {width}")

    @property
    def name(self) -> str:
        return f"rot{self.bits}"

    @property
    def layers(self) -> int:
        return math.prod(self.row_shape[:-1])

    @property
    def width(self) -> int:
        return self.row_shape[-1]

    @functools.cached_property
    def blocks(self) -> tuple[int, ...]:
        """The sizes of the blocks of a layer."""
        return block_sizes(self.width)

    @property
    def num_outliers(self) -> int:
        """K, of one layer."""
        return min(self.max_outliers, self.width // _WIDTH_PER_OUTLIER)

    @property
    def num_scales(self) -> int:
        return self.layers * len(self.blocks)

    @property
    def row_bytes(self) -> int:
        return sum(self._parts())

    def _parts(self) -> list[int]:
        """Bytes of a row's codes, channels and values."""
        outliers = self.layers * self.num_outliers * 2
        return [self.layers * packed_bytes(self.width, self.bits), outliers, outliers]

    def encode(self, rows: torch.Tensor) -> EncodedRows:
        """[N, *row_shape] -> bytes and float16 scales; NaN and Inf stay visible after decoding."""
        payload = torch.empty(rows.shape[0], self.row_bytes, dtype=torch.uint8, device=rows.device)
        scales = torch.empty(rows.shape[0], self.num_scales, dtype=self.scale_dtype, device=rows.device)
        for part in self._chunks(rows):
            payload[part], scales[part] = self._encode(rows[part].reshape(-1, self.layers, self.width).float())
        return EncodedRows(payload=payload, scales=scales)

    def decode(self, encoded: EncodedRows) -> torch.Tensor:
        """Bytes -> float32 [N, *row_shape], on the bytes' device."""
        assert encoded.scales is not None
        payload, scales = encoded.payload, encoded.scales.float().reshape(-1, self.layers, len(self.blocks))
        rows = torch.empty(payload.shape[0], self.layers, self.width, device=payload.device)
        for part in self._chunks(payload):
            self._decode(payload[part], scales[part], out=rows[part])
        return rows.reshape(payload.shape[0], *self.row_shape)

    def finite_rows(self, encoded: EncodedRows) -> torch.Tensor:
        """Return which rows decode to finite numbers, bool [N], without decoding them."""
        assert encoded.scales is not None
        *_, outliers = encoded.payload.split(self._parts(), dim=1)
        finite = torch.isfinite(encoded.scales).all(dim=1)
        return finite & torch.isfinite(outliers.contiguous().view(torch.bfloat16)).all(dim=1)

    def _chunks(self, rows: torch.Tensor) -> Iterator[slice]:
        values = _VALUES_AT_ONCE.get(rows.device.type, _VALUES_AT_ONCE_ON_DEVICES)
        step = max(1, values // max(1, self.layers * self.width))
        return (slice(start, start + step) for start in range(0, rows.shape[0], step))

    def _encode(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [N, L, W] -> uint8 [N, row_bytes] and float16 [N, L·B]."""
        rest, outliers = take_outliers(rows, self.num_outliers)
        rest *= _on_device(random_signs, self.layers, self.width, device=rows.device)
        padded = -(-self.width // CODES_PER_GROUP) * CODES_PER_GROUP
        codes = torch.zeros(*rows.shape[:2], padded, dtype=torch.uint8, device=rows.device)
        scales = []
        for start, block in self._spans():
            values = rest[..., start : start + block]
            scale = values.square().mean(dim=-1, keepdim=True).sqrt().to(self.scale_dtype)
            codes[..., start : start + block] = self._nearest(apply_hadamard(values), scale.float() * math.sqrt(block))
            scales.append(scale)
        parts = [pack_codes(codes, self.bits).flatten(1), *outliers.to_bytes()]
        return torch.cat(parts, dim=1), torch.cat(scales, dim=-1).flatten(1)

    def _nearest(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return the codes of `values` / `scale`, uint8."""
        table = _on_device(code_table, self.name, device=values.device)
        factor = torch.where(scale > 0, STEPS_PER_UNIT / scale, 0.0)
        steps = (values * factor).add_(LARGEST * STEPS_PER_UNIT).to(torch.int32)
        return table.index_select(0, steps.clamp_(0, len(table) - 1).flatten()).reshape(values.shape)

    def _decode(self, payload: torch.Tensor, scales: torch.Tensor, *, out: torch.Tensor) -> None:
        """uint8 [N, row_bytes] and float32 [N, L, B] -> `out`, float32 [N, L, W]."""
        packed, channels, values = payload.split(self._parts(), dim=1)
        codes = packed.reshape(payload.shape[0], self.layers, packed_bytes(self.width, self.bits))
        levels = unpack_values(codes, gaussian_levels(self.name))
        signs = _on_device(random_signs, self.layers, self.width, device=payload.device)
        for index, (start, block) in enumerate(self._spans()):
            span = slice(start, start + block)
            rotated = apply_hadamard(levels[..., span])
            rotated *= scales[..., index, None] / math.sqrt(block)
            torch.mul(rotated, signs[:, span], out=out[..., span])
        if self.num_outliers:
            shape = (payload.shape[0], self.layers, self.num_outliers)
            outliers = Outliers.from_bytes(channels, values, shape)
            out.scatter_(-1, outliers.channels, outliers.values.float())

    def _spans(self) -> Iterator[tuple[int, int]]:
        """The first channel and the size of each block."""
        start = 0
        for block in self.blocks:
            yield start, block
            start += block


@functools.lru_cache(maxsize=64)
def _on_device(function: Callable[..., NDArray[Any]], *arguments: int | str, device: torch.device) -> torch.Tensor:
    """Return an array that depends on `arguments` alone, kept on the device."""
    return torch.tensor(function(*arguments), device=device)
