"""Codecs that rotate: what a Gaussian quantiser may lose, outlier channels, readers that know the contract alone."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from eaglepipe.cache.codecs.bit_packing import pack_codes, unpack_values
from eaglepipe.cache.codecs.catalog import EncodedRows, inline_codec, make_codec
from eaglepipe.cache.codecs.gaussian_levels import gaussian_levels
from eaglepipe.cache.codecs.rotated import RotatedRows
from eaglepipe.cache.codecs.rotation import apply_hadamard, block_sizes
from eaglepipe.resources import schema_folder
from tests.cache.rotated_reader import rotated_rows, signs
from tests.cache.test_codecs import decibels, with_outliers

BITS = (2, 3, 4, 5, 6)
# Decibels of the best quantiser of 2^bits levels for a Gaussian (Max 1960, table I).
OPTIMAL = {2: 9.30, 3: 14.62, 4: 20.22, 5: 26.02, 6: 31.89}
SHAPES = [(2, 320), (1, 256), (3, 140), (2, 5), (1, 33), (1, 1)]


def codec_of(bits: int, shape: tuple[int, ...]) -> RotatedRows:
    codec = make_codec(f"rot{bits}", shape)
    assert isinstance(codec, RotatedRows)
    return codec


def gaussian(count: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def described(bits: int) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((schema_folder(1) / "shard.json").read_text())["codecs"][f"rot{bits}"]
    return entry


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_the_best_for_a_gaussian(bits: int) -> None:
    """Each is the mean of the values that are nearest to it; checked by integrating the density."""
    levels = gaussian_levels(f"rot{bits}").astype(np.float64)
    grid = np.linspace(-8, 8, 400_001)
    density = np.exp(-grid * grid / 2)
    code = np.searchsorted((levels[1:] + levels[:-1]) / 2, grid)
    means = np.bincount(code, grid * density) / np.bincount(code, density)
    assert np.abs(means - levels).max() < 2**-10
    assert np.array_equal(levels, -levels[::-1]) and len(levels) == 2**bits


@pytest.mark.parametrize("bits", BITS)
def test_gaussian_rows_lose_what_theory_says(bits: int) -> None:
    rows = gaussian(60, (1, 2048))
    codec = codec_of(bits, (1, 2048))
    lost = decibels(rows, codec.decode(codec.encode(rows)))
    assert OPTIMAL[bits] - 0.05 < lost < OPTIMAL[bits] + 0.3, "the outliers kept apart are worth a little"


@pytest.mark.parametrize("bits", BITS)
def test_outlier_channels_and_rows_that_are_no_gaussian_lose_no_more(bits: int) -> None:
    rows, bulk = with_outliers(0)
    codec = codec_of(bits, (2, 1024))
    again = codec.decode(codec.encode(rows))
    assert decibels(rows[..., bulk], again[..., bulk]) > OPTIMAL[bits] - 0.2
    tailed = gaussian(64, (1, 1024)) ** 5
    codec = codec_of(bits, (1, 1024))
    assert decibels(tailed, codec.decode(codec.encode(tailed))) > OPTIMAL[bits] - 0.2


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_reader_that_knows_the_contract_alone_rebuilds_every_value(bits: int, shape: tuple[int, ...]) -> None:
    rows = gaussian(7, shape) * 10 ** gaussian(7, (1, 1), seed=1)
    codec = codec_of(bits, shape)
    encoded = codec.encode(rows)
    assert encoded.scales is not None and encoded.scales.dtype == torch.float16
    read = rotated_rows(encoded.payload.numpy(), encoded.scales.numpy(), list(shape), described(bits))
    again = codec.decode(encoded).numpy()
    assert np.allclose(read, again, rtol=1e-5, atol=1e-6 * float(rows.abs().max()))


@pytest.mark.parametrize("bits", BITS)
def test_codes_are_those_of_a_slow_encoder(bits: int) -> None:
    """In float64, with the whole matrix: every code but those on a threshold; thresholds are multiples of 1/256."""
    layers, width = 2, 576
    rows = gaussian(20, (layers, width)).double()
    codec = codec_of(bits, (layers, width))
    encoded = codec.encode(rows)
    assert encoded.scales is not None
    levels = gaussian_levels(f"rot{bits}").astype(np.float64)
    thresholds = np.round((levels[1:] + levels[:-1]) / 2 * 256) / 256
    channels = np.argsort(-np.abs(rows.numpy()), axis=-1)[..., : codec.num_outliers]
    rest = rows.numpy().copy()
    np.put_along_axis(rest, channels, 0.0, axis=-1)
    rest *= signs(layers, 0, width)
    expected, distance = [], []
    for start, block in ((0, 512), (512, 64)):
        values = rest[..., start : start + block] @ hadamard(block) / math.sqrt(block)
        scale = np.sqrt((values**2).mean(-1, keepdims=True)).astype(np.float16).astype(np.float64)
        expected.append(levels[np.searchsorted(thresholds, values / scale, side="right")])
        distance.append(np.abs((values / scale)[..., None] - thresholds).min(-1))
    codes = encoded.payload[:, : layers * width * bits // 8].reshape(20, layers, -1)
    found = unpack_values(codes, gaussian_levels(f"rot{bits}")).numpy()
    sure = np.concatenate(distance, -1) > 1e-3
    assert sure.mean() > 0.85
    assert np.array_equal(found[sure], np.concatenate(expected, -1)[sure].astype(np.float32))


def hadamard(order: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    return matrix


@pytest.mark.parametrize("order", [1, 2, 4, 8, 64, 512])
def test_two_small_products_are_the_whole_matrix(order: int) -> None:
    rows = gaussian(3, (2, order))
    assert np.allclose(apply_hadamard(rows).numpy(), rows.numpy() @ hadamard(order), atol=1e-4)


def test_blocks_are_the_binary_digits_of_a_width() -> None:
    assert block_sizes(4096) == (4096,)
    assert block_sizes(576) == (512, 64)
    assert block_sizes(2880) == (2048, 512, 256, 64)
    assert all(sum(block_sizes(width)) == width for width in range(1, 300))


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_a_stream_of_bits_and_read_back(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 3, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack_codes(codes, bits)
    stream = (codes.numpy()[..., None] >> np.arange(bits)) & 1
    assert np.array_equal(packed.numpy(), np.packbits(stream.reshape(5, 3, -1), axis=-1, bitorder="little"))
    levels = np.arange(2**bits, dtype=np.float32)
    assert torch.equal(unpack_values(packed, levels), codes.float())


@pytest.mark.parametrize("shape", [(3, 576), (1, 4096)])
def test_bytes_of_a_row_do_not_depend_on_the_rows_beside_it(shape: tuple[int, ...]) -> None:
    rows = gaussian(70, shape)
    codec = codec_of(3, shape)
    whole = codec.encode(rows)
    assert whole.scales is not None
    for size in (1, 7, 64):
        for start in range(0, 70, size):
            part = codec.encode(rows[start : start + size])
            assert part.scales is not None
            assert torch.equal(part.payload, whole.payload[start : start + size])
            assert torch.equal(part.scales, whole.scales[start : start + size])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
def test_rows_that_are_not_finite_are_told_without_decoding(bad: float) -> None:
    for codec in (codec_of(3, (2, 256)), inline_codec("rot6", (512,))):
        for count in (1, 40):  # within the outliers, and more than those
            rows = gaussian(4, codec.row_shape)
            rows.flatten(1)[2, 3 : 3 + count] = bad
            encoded = codec.encode(rows)
            decoded = torch.isfinite(codec.decode(encoded)).flatten(1).all(dim=1)
            assert torch.equal(codec.finite_rows(encoded), decoded)
            assert decoded.tolist() == [True, True, count == 1 and bad == 1e38, True]


def test_zeros_and_numbers_below_the_scales_range_stay_small() -> None:
    codec = codec_of(3, (1, 512))
    rows = torch.stack([torch.zeros(1, 512), torch.full((1, 512), 1e-12), torch.ones(1, 512)])
    decoded = codec.decode(codec.encode(rows))
    assert decoded[0].abs().max() == 0 and decoded[1].abs().max() < 1e-11
    assert torch.isfinite(decoded).all()


def test_rows_are_what_they_cost() -> None:
    """Three layers of width 4096 in 3 bits: 4,608 bytes of codes, 96 of outliers, 6 of scales."""
    codec = codec_of(3, (3, 4096))
    assert (codec.row_bytes, 2 * codec.num_scales) == (4608 + 3 * 8 * 4, 6)
    assert inline_codec("rot6", (4096,)).row_bytes == 3072 + 8 * 4 + 2
    empty = codec.encode(torch.empty(0, 3, 4096))
    assert codec.decode(EncodedRows(payload=empty.payload, scales=empty.scales)).shape == (0, 3, 4096)
