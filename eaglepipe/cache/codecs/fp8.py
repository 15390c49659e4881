"""8-bit floats (e4m3) and one float32 scale a token and layer: precision is relative, so outliers do no harm."""

import math
from dataclasses import dataclass

import torch

from eaglepipe.cache.codecs.encoded import EncodedRows

_LARGEST = 448.0
_SMALLEST_SCALE = 2.0**-120


@dataclass(frozen=True, kw_only=True)
class Fp8Rows:
    """Rows [*layers, width] as e4m3: `x ≈ value · scale`, the largest of a token and layer at 448."""

    row_shape: tuple[int, ...]
    name: str = "fp8"
    scale_dtype: torch.dtype = torch.float32

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape)

    @property
    def num_scales(self) -> int:
        return math.prod(self.row_shape[:-1])

    def encode(self, rows: torch.Tensor) -> EncodedRows:
        """[N, *row_shape] -> bytes and scales; NaN and Inf reach the scale, so that decoding shows them."""
        values = rows.reshape(rows.shape[0], self.num_scales, self.row_shape[-1]).float()
        scales = values.abs().amax(dim=-1) / _LARGEST
        scales = scales.clamp(min=_SMALLEST_SCALE)
        narrow = _to_e4m3((values / scales[..., None]).clamp(-_LARGEST, _LARGEST))
        return EncodedRows(payload=narrow.reshape(rows.shape[0], self.row_bytes), scales=scales)

    def finite_rows(self, encoded: EncodedRows) -> torch.Tensor:
        """Return which rows decode to finite numbers, bool [N], without decoding them."""
        assert encoded.scales is not None
        return ((encoded.payload & 127) != 127).all(dim=1) & torch.isfinite(encoded.scales).all(dim=1)

    def decode(self, encoded: EncodedRows) -> torch.Tensor:
        """Bytes -> float32 [N, *row_shape], on the bytes' device."""
        assert encoded.scales is not None
        values = _from_e4m3(encoded.payload).reshape(-1, self.num_scales, self.row_shape[-1])
        return (values * encoded.scales.float()[..., None]).reshape(-1, *self.row_shape)


def _to_e4m3(values: torch.Tensor) -> torch.Tensor:
    """float32 -> the bytes of e4m3, by way of the host if the device lacks the dtype."""
    try:
        return values.to(torch.float8_e4m3fn).view(torch.uint8)
    except (RuntimeError, TypeError):
        return values.cpu().to(torch.float8_e4m3fn).view(torch.uint8).to(values.device)


def _from_e4m3(payload: torch.Tensor) -> torch.Tensor:
    """The bytes of e4m3 -> float32, by a table if the device lacks the dtype."""
    try:
        return payload.view(torch.float8_e4m3fn).float()
    except (RuntimeError, TypeError):
        return e4m3_table().to(payload.device)[payload.long()]


def e4m3_table() -> torch.Tensor:
    """Return the value of each of the 256 bytes, float32, from the definition of the format: bias 7, no infinities."""
    code = torch.arange(256)
    exponent, mantissa = (code >> 3) & 15, (code & 7).float()
    normal = (1 + mantissa / 8) * torch.exp2((exponent - 7).float())
    values = torch.where(exponent > 0, normal, mantissa * 2.0**-9)
    values = torch.where((code & 127) == 127, torch.nan, values)
    return torch.where(code >= 128, -values, values)
