"""The two codecs of one cache, ready to use: with the calibration that integer codecs need."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from eaglepipe.cache.calibration import ChannelCalibration, calibrate, calibration_from
from eaglepipe.cache.codec_inline import InlineScales
from eaglepipe.cache.codec_integer import IntegerRows
from eaglepipe.cache.codec_types import RowCodec
from eaglepipe.cache.schema import ShardSpec


@dataclass(frozen=True, kw_only=True)
class CacheCodecs:
    """Codecs of aux states and of supervision rows."""

    aux: RowCodec
    rows: RowCodec


def needs_calibration(spec: ShardSpec) -> bool:
    """Whether a cache of this spec holds a `codec.safetensors`."""
    return any(_integer_part(codec) is not None for codec in (spec.aux, spec.rows))


def bind_codecs(spec: ShardSpec, tensors: Mapping[str, torch.Tensor]) -> CacheCodecs:
    """The spec's codecs with the calibration in `tensors`, the content of `codec.safetensors`.

    Raises:
        CorruptError: a calibration is missing or does not fit.
    """
    return CacheCodecs(
        aux=_bind(spec.aux, tensors, "aux_hidden_states"), rows=_bind(spec.rows, tensors, "last_hidden_states")
    )


def calibration_tensors(spec: ShardSpec, aux: torch.Tensor, last_hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `codec.safetensors` holds, computed from aux states [N, A, Ht] and last hidden states [N, Ht]."""
    tensors: dict[str, torch.Tensor] = {}
    for codec, rows, column in (
        (spec.aux, aux, "aux_hidden_states"),
        (spec.rows, last_hidden, "last_hidden_states"),
    ):
        integers = _integer_part(codec)
        if integers is not None:
            tensors |= calibrate(rows, num_outliers=integers.num_outliers).tensors(column)
    return tensors


def _integer_part(codec: RowCodec) -> IntegerRows | None:
    inner = codec.inner if isinstance(codec, InlineScales) else codec
    return inner if isinstance(inner, IntegerRows) else None


def _bind(codec: RowCodec, tensors: Mapping[str, torch.Tensor], column: str) -> RowCodec:
    integers = _integer_part(codec)
    if integers is None:
        return codec
    calibration: ChannelCalibration = calibration_from(
        tensors, column, layers=integers.layers, width=integers.row_shape[-1], num_outliers=integers.num_outliers
    )
    bound = replace(integers, calibration=calibration)
    return InlineScales(inner=bound) if isinstance(codec, InlineScales) else bound
