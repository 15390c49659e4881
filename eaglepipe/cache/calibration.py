"""The channel scales that integer codecs share over a whole cache, in a small file published before any shard.

They are eighths of an octave, so that the last bits of a forward on another device do not change them, and medians,
so that a few tokens with massive activations do not either.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from eaglepipe.errors import CorruptError

CODEC_FILE = "codec.safetensors"
_STEPS_PER_OCTAVE = 8
# Channels quieter than their layer's median by more than this are treated as being that quiet.
_QUIETEST = 2.0**-10
_SMALLEST = 2.0**-60


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """What a codec reads at every call."""

    scales: torch.Tensor  # float32 [L, W]
    outliers: torch.Tensor  # int64 [L, K]


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelCalibration:
    """Channel scales `2^(eighths / 8)` and the channels that are kept apart, for L layers of width W."""

    eighths: torch.Tensor  # int16 [L, W]
    outliers: torch.Tensor  # int32 [L, K], ascending
    _devices: dict[torch.device, OnDevice] = field(default_factory=dict, repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelCalibration):
            return NotImplemented
        return torch.equal(self.eighths, other.eighths) and torch.equal(self.outliers, other.outliers)

    def __hash__(self) -> int:
        return hash(self.eighths.numpy().tobytes())

    def on(self, device: torch.device) -> OnDevice:
        """The numbers on a device, where they stay."""
        if device not in self._devices:
            self._devices[device] = OnDevice(
                scales=torch.exp2(self.eighths.float() / _STEPS_PER_OCTAVE).to(device),
                outliers=self.outliers.long().to(device),
            )
        return self._devices[device]

    def tensors(self, column: str) -> dict[str, torch.Tensor]:
        """What `codec.safetensors` holds for a column."""
        return {f"{column}.eighths": self.eighths, f"{column}.outliers": self.outliers}


def calibrate(rows: torch.Tensor, *, num_outliers: int) -> ChannelCalibration:
    """Channel scales from the median magnitudes of `rows` [N, W] or [N, L, W]; rows not finite are left out."""
    values = (rows if rows.dim() == 3 else rows[:, None]).float().cpu()
    values = values[values.isfinite().flatten(1).all(dim=1)].abs()
    if values.shape[0] == 0:
        values = torch.ones(1, *values.shape[1:])
    medians = values.median(dim=0).values
    floor = (medians.median(dim=-1, keepdim=True).values * _QUIETEST).clamp(min=_SMALLEST)
    eighths = (_STEPS_PER_OCTAVE * medians.clamp(min=floor).log2()).round().to(torch.int16)
    loudest = eighths.float().sort(dim=-1, descending=True, stable=True).indices[:, :num_outliers]
    return ChannelCalibration(eighths=eighths, outliers=loudest.sort(dim=-1).values.to(torch.int32))


def calibration_from(
    tensors: Mapping[str, torch.Tensor], column: str, *, layers: int, width: int, num_outliers: int
) -> ChannelCalibration:
    """The inverse of `ChannelCalibration.tensors`.

    Raises:
        CorruptError: tensors that are missing or do not fit the cache.
    """
    eighths, outliers = tensors.get(f"{column}.eighths"), tensors.get(f"{column}.outliers")
    if eighths is None or outliers is None:
        raise CorruptError(f"{CODEC_FILE} holds no calibration of {column}")
    fit = (eighths.dtype, outliers.dtype) == (torch.int16, torch.int32)
    if not fit or tuple(eighths.shape) != (layers, width) or tuple(outliers.shape) != (layers, num_outliers):
        raise CorruptError(f"{CODEC_FILE}: its calibration of {column} has another dtype or shape than the cache")
    if outliers.numel() and (int(outliers.min()) < 0 or int(outliers.max()) >= width):
        raise CorruptError(f"{CODEC_FILE}: its calibration of {column} names channels that do not exist")
    return ChannelCalibration(eighths=eighths, outliers=outliers)
