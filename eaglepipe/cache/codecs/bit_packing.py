"""Codes of 2 to 6 bits, eight in as many bytes as a code has bits, least significant first."""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

CODES_PER_GROUP = 8
# Bits that one look-up turns into values: a multiple of a code's bits, few enough for a small table.
_FIELD_BITS = {2: 8, 3: 12, 4: 8, 5: 10, 6: 12}


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of `count` codes, which are filled up with zeros to a multiple of 8 codes."""
    return -(-count // CODES_PER_GROUP) * bits


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., n], n a multiple of 8, codes below 2^bits -> uint8 [..., n·bits/8]: neighbours merge three times."""
    if bits == 4:
        pairs = codes.contiguous().view(torch.int16)
        return ((pairs >> 4) | pairs).to(torch.uint8)  # of which the low byte stays
    words = codes.contiguous().view(torch.int64)
    for width, gap in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
        low = _lanes(2 * width, gap)
        words = (words & low) | ((words >> (width - gap)) & (low << gap))
    shape = (*codes.shape[:-1], codes.shape[-1] // CODES_PER_GROUP, CODES_PER_GROUP)
    return words.view(torch.uint8).reshape(shape)[..., :bits].flatten(-2)


def _lanes(width: int, ones: int) -> int:
    """A 64-bit number of lanes of `width` bits, the lowest `ones` of each set."""
    return sum(((1 << ones) - 1) << start for start in range(0, 64, width))


def unpack_values(packed: torch.Tensor, levels: NDArray[np.float32]) -> torch.Tensor:
    """uint8 [..., n·bits/8] -> the level of each code, float32 [..., n]; `levels` [2^bits].

    Several codes at a time are looked up in a table of all their combinations.
    """
    bits = len(levels).bit_length() - 1
    table = _table(levels.tobytes(), packed.device)
    values = functional.embedding(_fields(packed, _FIELD_BITS[bits]), table)
    return values.reshape(*packed.shape[:-1], packed.shape[-1] * 8 // bits)


@functools.lru_cache(maxsize=32)
def _table(level_bytes: bytes, device: torch.device) -> torch.Tensor:
    """[2^field, codes of a field]: the level of each code of each field; levels as bytes can be a key."""
    levels = np.frombuffer(level_bytes, np.float32)
    bits = len(levels).bit_length() - 1
    field, shifts = np.arange(1 << _FIELD_BITS[bits]), np.arange(0, _FIELD_BITS[bits], bits)
    return torch.from_numpy(levels[(field[:, None] >> shifts) & (len(levels) - 1)]).to(device)


def _fields(packed: torch.Tensor, field_bits: int) -> torch.Tensor:
    """uint8 [..., bytes] -> int32 [..., fields of that many bits]."""
    if field_bits == 8:
        return packed.to(torch.int32)
    size = {12: 3, 10: 5}[field_bits]  # bytes that hold whole fields
    parts = packed.reshape(*packed.shape[:-1], -1, size)
    mask, fields = (1 << field_bits) - 1, []
    for number in range(8 * size // field_bits):
        first, shift = divmod(number * field_bits, 8)
        both = parts[..., first].to(torch.int32) | (parts[..., first + 1].to(torch.int32) << 8)
        fields.append((both >> shift) & mask)
    return torch.stack(fields, dim=-1).flatten(-2)
