"""What each codec keeps of a row, against what its type allows, on data with outlier channels too."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglepipe.cache.codecs import fp8 as codec_fp8
from eaglepipe.cache.codecs.catalog import EncodedRows, RowCodec, inline_codec, make_codec
from eaglepipe.cache.codecs.integer import IntegerRows
from eaglepipe.errors import CacheError

NARROW = ("fp8", "int8", "int4")


def with_outliers(seed: int, *, tokens: int = 64, width: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian rows [tokens, 2, width] with 4 channels at 100 times the bulk, and which channels are the bulk."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, 2, width, generator=generator)
    channels = torch.randperm(width, generator=generator)[:4]
    rows[..., channels] *= 100
    return rows, torch.ones(width, dtype=torch.bool).index_fill(0, channels, False)


def decibels(rows: torch.Tensor, again: torch.Tensor) -> float:
    return 10 * math.log10(float(rows.square().sum() / (rows - again).square().sum()))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1,), (7,), (33,), (2, 5), (3, 300), (1, 1030)]),
    name=st.sampled_from(["bf16", "fp16", "fp32", *NARROW]),
    magnitude=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_error_of_every_value_is_within_what_the_type_allows(
    seed: int, shape: tuple[int, ...], name: str, magnitude: float
) -> None:
    rows = magnitude * torch.randn(5, *shape, generator=torch.Generator().manual_seed(seed))
    rows[0] = 0.0
    codec = make_codec(name, tuple(rows.shape[1:]))
    encoded = codec.encode(rows)
    assert encoded.payload.dtype == torch.uint8
    assert encoded.payload.shape == (5, codec.row_bytes)
    error = (codec.decode(encoded).float() - rows).abs().flatten(1)
    assert torch.all(error <= _allowed(codec, rows).flatten(1))


def _allowed(codec: RowCodec, rows: torch.Tensor) -> torch.Tensor:
    """Half a unit in the last place; for integers, a step of the group's scale, 2^-(bits-1) of its largest value.

    A scale below the normal range of float16 is off by up to 2^-25, and the largest integer multiplies it.
    """
    relative = {"bf16": 2**-8, "fp16": 2**-11, "fp32": 0.0, "fp8": 2**-4}
    if codec.name in relative:
        smallest = {"fp8": 2**-10 / 448}.get(codec.name, 0.0) * rows.abs().amax(-1, keepdim=True)
        return rows.abs() * relative[codec.name] * 1.001 + smallest + (2**-25 if codec.name == "fp16" else 0)
    assert isinstance(codec, IntegerRows)
    groups = rows.split(codec.group_width, dim=-1)
    steps = [group.abs().amax(-1, keepdim=True).expand_as(group) / 2 ** (codec.bits - 1) for group in groups]
    return torch.cat(steps, -1) * (1 + 2 ** (codec.bits - 11)) + 2 ** (codec.bits - 1 - 25) + 2**-25


@pytest.mark.parametrize(("name", "least_total", "least_bulk"), [("fp8", 30, 30), ("int8", 46, 42), ("int4", 26, 20)])
def test_outlier_channels_do_not_drown_the_others(name: str, least_total: float, least_bulk: float) -> None:
    rows, bulk = with_outliers(0)
    codec = make_codec(name, tuple(rows.shape[1:]))
    again = codec.decode(codec.encode(rows))
    assert decibels(rows, again) > least_total
    assert decibels(rows[..., bulk], again[..., bulk]) > least_bulk
    step = rows.abs().amax(-1, keepdim=True) / 127
    plain = (rows / step).round() * step
    assert decibels(rows[..., bulk], plain[..., bulk]) < 12, "the data would not show a codec that fails"


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_more_outliers_than_are_kept_apart_harm_only_their_groups(name: str) -> None:
    rows = torch.randn(64, 1, 4096, generator=torch.Generator().manual_seed(1))
    rows[..., :512:16] *= 100
    codec = make_codec(name, (1, 4096))
    again = codec.decode(codec.encode(rows))
    assert decibels(rows[..., 512:], again[..., 512:]) > (42 if name == "int8" else 20)


def test_massive_tokens_leave_the_others_alone() -> None:
    rows, _ = with_outliers(2)
    massive = rows.clone()
    massive[::16] *= 1000
    for name in NARROW:
        codec = make_codec(name, (2, 1024))
        ordinary = codec.decode(codec.encode(rows))[1:16]
        assert torch.equal(codec.decode(codec.encode(massive))[1:16], ordinary)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_still_seen_after_decoding(name: str, bad: float) -> None:
    rows, _ = with_outliers(5, tokens=4)
    codec = make_codec(name, tuple(rows.shape[1:]))
    for channel in range(0, 1024, 100):
        broken = rows.clone()
        broken[2, 1, channel] = bad
        decoded = codec.decode(codec.encode(broken))
        assert torch.isfinite(decoded).flatten(1).all(1).tolist() == [True, True, False, True]


def test_fp8_bytes_mean_what_the_format_says_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    native = every.view(torch.float8_e4m3fn).float()
    assert torch.equal(codec_fp8.e4m3_table().nan_to_num(7777), native.nan_to_num(7777))
    rows, _ = with_outliers(6, tokens=3)
    codec = make_codec("fp8", (2, 1024))
    encoded = codec.encode(rows)
    here = codec.decode(encoded)
    monkeypatch.setattr(torch, "float8_e4m3fn", "a dtype that this device lacks")
    assert torch.equal(codec.decode(encoded), here)


@pytest.mark.parametrize("name", NARROW)
def test_scales_at_the_end_of_the_row_decode_alike(name: str) -> None:
    rows = with_outliers(7, tokens=3)[0][:, 0]
    apart, inline = make_codec(name, (1024,)), inline_codec(name, (1024,))
    encoded = inline.encode(rows)
    assert encoded.scales is None
    assert encoded.payload.shape[1] == inline.row_bytes
    assert torch.equal(inline.decode(encoded), apart.decode(apart.encode(rows)))


def test_no_rows_are_no_rows() -> None:
    for name in NARROW:
        codec = make_codec(name, (2, 64))
        encoded = codec.encode(torch.empty(0, 2, 64))
        assert codec.decode(encoded).shape == (0, 2, 64)


def test_int4_layout_is_the_one_the_contract_describes() -> None:
    """Rebuilt with numpy from the words in cache_schemas/README.md."""
    rows, _ = with_outliers(8, tokens=6, width=100)
    codec = make_codec("int4", (2, 100))
    encoded = codec.encode(rows)
    assert encoded.scales is not None
    payload, scales = encoded.payload.numpy(), encoded.scales.numpy().astype(np.float32)
    nibbles = np.stack([payload[:, :128] & 15, payload[:, :128] >> 4], -1).reshape(6, 2, 4, 32).astype(np.int64)
    steps = np.where(nibbles > 7, nibbles - 16, nibbles)
    values = (steps * scales.reshape(6, 2, 4, 1)).reshape(6, 2, 128)[..., :100]
    channels = payload[:, 128:132].copy().view(np.uint16).reshape(6, 2, 1).astype(np.int64)
    apart = (payload[:, 132:].copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(6, 2, 1)
    np.put_along_axis(values, channels, apart, -1)
    assert np.allclose(values, codec.decode(encoded).numpy(), rtol=1e-6)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(CacheError, match="unknown codec 'int3'"):
        make_codec("int3", (4,))


def test_rows_decode_alone_and_with_scales_that_were_widened_on_the_way() -> None:
    rows, _ = with_outliers(10, tokens=4)
    codec = make_codec("int8", (2, 1024))
    encoded = codec.encode(rows.to(torch.bfloat16))
    assert encoded.scales is not None
    narrow = EncodedRows(payload=encoded.payload[1:2], scales=encoded.scales[1:2].float())
    assert torch.equal(codec.decode(narrow)[0], codec.decode(encoded)[1])


@pytest.mark.parametrize("bits", [8, 4])
def test_scale_of_a_group_is_its_first_number_of_the_largest_magnitude(bits: int) -> None:
    """Equal magnitudes of both signs are common in narrow types; the integers then differ by the sign of the scale."""
    codec = make_codec(f"int{bits}", (2, 32))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-3, 4, (300, 2, 32), generator=generator).to(torch.bfloat16)
    rows[0], rows[1] = 0.0, -0.0
    values = rows.reshape(300, 2, -1, codec.group_width).float()
    largest = values.gather(-1, values.abs().argmax(-1, keepdim=True)).squeeze(-1)
    expected = (largest / -(2 ** (bits - 1))).half().flatten(1)
    encoded = codec.encode(rows)
    assert encoded.scales is not None
    assert torch.equal(encoded.scales.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32", *NARROW])
@pytest.mark.parametrize("make", [make_codec, inline_codec])
def test_finite_rows_are_those_that_decode_to_finite_numbers(
    name: str, make: Callable[[str, tuple[int, ...]], RowCodec]
) -> None:
    codec = make(name, (2, 70))
    rows = torch.randn(200, 2, 70, generator=torch.Generator().manual_seed(0))
    rows[3], rows[4], rows[5] = 1e5, 1e38, 1e-30
    rows[6, 1, 69], rows[7, 0, 0], rows[150, 1, 5] = torch.nan, torch.inf, -torch.inf
    encoded = codec.encode(rows)
    found = codec.finite_rows(encoded)
    assert torch.equal(found, torch.isfinite(codec.decode(encoded)).flatten(1).all(dim=1))
    assert not found[[6, 7, 150]].any() and found[[0, 5, 199]].all()


@pytest.mark.parametrize("name", NARROW)
def test_rows_are_encoded_alike_however_many_come_at_once(name: str) -> None:
    codec = make_codec(name, (2, 70))
    rows = torch.randn(300, 2, 70, generator=torch.Generator().manual_seed(1))
    together, apart = codec.encode(rows), [codec.encode(part) for part in rows.split(7)]
    assert torch.equal(together.payload, torch.cat([part.payload for part in apart]))
    assert together.scales is not None
    assert torch.equal(together.scales, torch.cat([part.scales for part in apart if part.scales is not None]))
