"""The largest values of each row of a layer, kept apart in bfloat16 with their channels so that they spoil no other.

Layers L, width W, K outliers a layer. Bytes: L·K channels as uint16, ascending within a layer, then L·K values.
"""

from typing import NamedTuple

import torch


class Outliers(NamedTuple):
    """Channels, int64 [N, L, K] ascending, and values, bfloat16 [N, L, K]."""

    channels: torch.Tensor
    values: torch.Tensor

    def to_bytes(self) -> list[torch.Tensor]:
        """Return channels and values as uint8 [N, L·K·2] each."""
        return [_bytes(self.channels.to(torch.int16)), _bytes(self.values)]

    @classmethod
    def from_bytes(cls, channels: torch.Tensor, values: torch.Tensor, shape: tuple[int, int, int]) -> "Outliers":
        """Read what `to_bytes` gives; `shape` is (N, L, K)."""
        numbers = channels.contiguous().view(torch.int16).reshape(shape).long()
        return cls(channels=numbers, values=values.contiguous().view(torch.bfloat16).reshape(shape))


def take_outliers(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, Outliers]:
    """Return a copy of float32 rows [N, L, W], zero at the `count` largest of each, and these; NaN ranks first."""
    channels = rows.abs().topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    values = rows.gather(-1, channels).to(torch.bfloat16)
    return rows.scatter(-1, channels, 0.0), Outliers(channels=channels, values=values)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """[N, ...] of any dtype -> uint8 [N, bytes]."""
    return values.flatten(1).contiguous().view(torch.uint8)
