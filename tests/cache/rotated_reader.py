"""Rows of the codecs that rotate, decoded with numpy alone by the words of `cache_schemas/README.md`."""

from typing import Any

import numpy as np


def rotated_rows(data: np.ndarray, scales: np.ndarray, shape: list[int], codec: dict[str, Any]) -> np.ndarray:
    """Decode uint8 [N, bytes] and float16 [N, L·B] by an entry of `codecs` in shard.json, float32 [N, L, W]."""
    layers, width = shape
    positive = np.array(codec["levels"], np.float32)
    levels, bits = np.concatenate([-positive[::-1], positive]), int(np.log2(2 * len(positive)))
    padded, apart = -(-width // 8) * 8, layers * min(codec["max_outliers"], width // codec["width_per_outlier"])
    packed, channels, values = np.split(data, [layers * padded * bits // 8, data.shape[1] - 2 * apart], axis=1)
    stream = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(data), layers, padded, bits)
    steps = levels[(stream.astype(np.int64) << np.arange(bits)).sum(-1)]
    blocks = [1 << bit for bit in reversed(range(16)) if width >> bit & 1]
    scales = scales.astype(np.float32).reshape(len(data), layers, len(blocks))
    rows, start = np.empty((len(data), layers, width), np.float32), 0
    for block, size in enumerate(blocks):
        here = slice(start, start + size)
        parity = np.arange(size)[:, None] & np.arange(size)
        for shift in (8, 4, 2, 1):
            parity ^= parity >> shift
        mixed = steps[..., here] @ (1 - 2 * (parity & 1)).astype(np.float32)
        rows[..., here] = mixed * scales[..., block, None] / np.float32(np.sqrt(size)) * signs(layers, start, size)
        start += size
    places = np.ascontiguousarray(channels).view("<u2").reshape(len(data), layers, -1).astype(np.int64)
    floats = (np.ascontiguousarray(values).view("<u2").astype(np.uint32) << 16).view(np.float32)
    np.put_along_axis(rows, places, floats.reshape(places.shape), axis=-1)
    return rows


def signs(layers: int, start: int, size: int) -> np.ndarray:
    number = (np.arange(layers, dtype=np.uint64)[:, None] << 32) + np.arange(
        start + 1, start + size + 1, dtype=np.uint64
    )
    mixed = number * 0x9E3779B97F4A7C15
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB
    return np.where((mixed ^ mixed >> 31) >> 63, -1, 1).astype(np.float32)
