"""A fixed rotation of each layer: random signs, then a Hadamard matrix over each block of channels.

It spreads whatever a few channels hold over all of a block, so that any row looks Gaussian, without a look at data. A
width is cut into powers of two, the largest first: 4096 is one block, 576 is 512 and 64. Hadamard matrices are those of
Sylvester in natural order, and so symmetric and their own inverse.
"""

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray


def block_sizes(width: int) -> tuple[int, ...]:
    """Return the powers of two that add up to `width`, descending."""
    return tuple(1 << bit for bit in reversed(range(width.bit_length())) if width >> bit & 1)


@functools.cache
def random_signs(layers: int, width: int) -> NDArray[np.float32]:
    """Return +1 or -1 for each channel, float32 [layers, width]: channel j of layer l takes number l·2^32 + j + 1 of
    SplitMix64 seeded with 0, whose top bit means -1."""
    channels, first = np.arange(1, width + 1, dtype=np.uint64), np.arange(layers, dtype=np.uint64) << np.uint64(32)
    mixed = split_mix(first[:, None] + channels, seed=0)
    signs = np.where(mixed >> np.uint64(63), np.float32(-1), np.float32(1))
    signs.setflags(write=False)
    return signs


def split_mix(number: NDArray[np.uint64], *, seed: int) -> NDArray[np.uint64]:
    """Return the numbers of SplitMix64 that a seed gives, counted from 1; in the shape of `number`."""
    mixed = number * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


def apply_hadamard(rows: torch.Tensor) -> torch.Tensor:
    """Return `rows` [..., n], n a power of two, times the Hadamard matrix of order n, without the factor 1/sqrt(n).

    The matrix is a Kronecker product of two of about order sqrt(n), so that two small products do. Each row's result
    depends on that row alone, bit for bit.
    """
    order = rows.shape[-1]
    inner = 1 << ((order.bit_length()) // 2)
    outer = order // inner
    grid = rows.reshape(-1, outer, inner) @ hadamard_matrix(inner, rows.device, rows.dtype)
    if outer > 1:
        grid = hadamard_matrix(outer, rows.device, rows.dtype) @ grid
    return grid.reshape(rows.shape)


@functools.cache
def hadamard_matrix(order: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the matrix of +1 and -1, [order, order]: entry (i, j) is -1 if i & j has an odd number of bits."""
    matrix = torch.ones(1, 1, dtype=dtype)
    for _ in range(int(math.log2(order))):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.to(device)
