"""Uniform noise as a pure function of 32-bit seeds: the same on every device and in every batch."""

import torch

_STRIDE, _MULTIPLIER, _LOW_32_BITS = 0x61C88647, 0x45D9F3B, 0xFFFFFFFF


def uniform_noise(seeds: torch.Tensor, width: int, amplitude: float) -> torch.Tensor:
    """Draw from U(-amplitude, amplitude), independently by seed and channel.

    Args:
        seeds: int64 [...], each in 0..2^32-1 and at random itself.

    Returns: float32 [..., width], from 24 bits of an integer hash of (seed, channel).
    """
    channels = torch.arange(width, device=seeds.device) * _STRIDE
    bits = (seeds[..., None] + channels).bitwise_and_(_LOW_32_BITS)
    for _ in range(2):
        bits.bitwise_xor_(bits >> 16).mul_(_MULTIPLIER).bitwise_and_(_LOW_32_BITS)
    bits.bitwise_xor_(bits >> 16)
    return (bits >> 8).float().mul_(2.0 * amplitude / 2**24).sub_(amplitude)
