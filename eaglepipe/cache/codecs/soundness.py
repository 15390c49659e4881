"""Encoded rows that no encoder writes: numbers that are not finite, scales and channels that mean nothing.

Found in the bytes themselves, so that a first touch costs little more than reading them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eaglepipe.cache.codecs.catalog import FloatRows, InlineScales, RowCodec
from eaglepipe.cache.codecs.fp8 import Fp8Rows
from eaglepipe.cache.codecs.integer import IntegerRows
from eaglepipe.cache.codecs.rotated import RotatedRows

Array = NDArray[Any]
_INFINITIES = {
    torch.bfloat16: (0x7F80, np.uint16),
    torch.float16: (0x7C00, np.uint16),
    torch.float32: (0x7F800000, np.uint32),
}
_ITEMS_AT_ONCE = 2**16  # so that the second look at them finds them in the processor's cache
_LARGEST_FP8_SCALE = float(np.finfo(np.float32).max) / 448.0


@dataclass(frozen=True, kw_only=True)
class RowFault:
    """A value that cannot be, and the row that it is in."""

    row: int
    text: str


def find_fault(codec: RowCodec, payload: NDArray[np.uint8], scales: Array | None = None) -> RowFault | None:
    """Return the first fault of encoded rows, payload uint8 [N, row bytes]; None if they decode to finite numbers."""
    if payload.size == 0:
        return None
    if isinstance(codec, FloatRows):
        return _not_finite(_numbers(payload, _INFINITIES[codec.dtype][1]), codec.dtype)
    if isinstance(codec, InlineScales):
        width = codec.inner.row_bytes
        numbers = _numbers(payload[:, width:], np.float16 if codec.scale_dtype == torch.float16 else np.float32)
        return find_fault(codec.inner, payload[:, :width], numbers)
    assert scales is not None
    if isinstance(codec, Fp8Rows):
        return _fp8_fault(payload, scales)
    is_sound = np.isfinite(scales)
    if isinstance(codec, RotatedRows):
        is_sound &= scales >= 0
    return _bad_scale(scales, is_sound) or _outlier_fault(codec, payload)


def _not_finite(bits: Array, dtype: torch.dtype) -> RowFault | None:
    """Rows of floating-point numbers by their bits [N, n]: the largest ones of either sign are infinities and NaN."""
    infinity, kind = _INFINITIES[dtype]
    sign = 1 << (8 * np.dtype(kind).itemsize - 1)
    flat = np.ascontiguousarray(bits).reshape(-1)
    parts = (flat[start : start + _ITEMS_AT_ONCE] for start in range(0, flat.size, _ITEMS_AT_ONCE))
    if all(
        int(part.view(f"i{part.itemsize}").max()) < infinity and int(part.max()) < sign + infinity for part in parts
    ):
        return None
    row, place = (int(number) for number in np.argwhere((bits & (sign - 1)) >= infinity)[0])
    value = torch.from_numpy(np.array(bits[row, place : place + 1]).view(np.int16 if kind is np.uint16 else np.int32))
    return RowFault(row=row, text=f"is {float(value.view(dtype))} in place {place}")


def _fp8_fault(payload: NDArray[np.uint8], scales: Array) -> RowFault | None:
    if fault := _bad_scale(scales, (scales > 0) & (scales <= _LARGEST_FP8_SCALE)):
        return fault
    if int(payload.max()) < 0xFF and int(payload.view(np.int8).max()) < 0x7F:
        return None
    row, place = (int(number) for number in np.argwhere((payload & 0x7F) == 0x7F)[0])
    return RowFault(row=row, text=f"is nan in place {place}")


def _outlier_fault(codec: IntegerRows | RotatedRows, payload: NDArray[np.uint8]) -> RowFault | None:
    count = codec.layers * codec.num_outliers
    if count == 0:
        return None
    first = codec.row_bytes - 4 * count
    channels = _numbers(payload[:, first : first + 2 * count], np.uint16)
    by_layer = channels.reshape(len(payload), codec.layers, codec.num_outliers).astype(np.int32)
    wrong = (by_layer >= codec.row_shape[-1]).any(axis=(1, 2)) | (np.diff(by_layer, axis=2) <= 0).any(axis=(1, 2))
    if wrong.any():
        row = int(wrong.argmax())
        shown, width = channels[row].tolist()[:8], codec.row_shape[-1]
        return RowFault(row=row, text=f"has outliers in channels {shown}, which are not ascending below {width}")
    return _not_finite(_numbers(payload[:, first + 2 * count :], np.uint16), torch.bfloat16)


def _bad_scale(scales: Array, is_sound: NDArray[np.bool_]) -> RowFault | None:
    if is_sound.all():
        return None
    row, place = (int(number) for number in np.argwhere(~is_sound)[0])
    return RowFault(row=row, text=f"has the scale {float(scales[row, place])} in place {place}")


def _numbers(columns: NDArray[np.uint8], dtype: type[Any]) -> Array:
    """[N, bytes] -> numbers [N, n], of columns that need not lie side by side."""
    return np.ascontiguousarray(columns).view(dtype)
