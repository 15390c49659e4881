"""States of a target and of their encodings by layer: how loud the loudest channel is, and what an encoding loses.

The first token of a sample is left out: its massive values are those of every sample, and a sum of squares would show
nothing else.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eaglepipe.cache.codecs.catalog import EncodedRows
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.columns import RowSupervision, take_rows
from eaglepipe.cache.types import CachedSample
from eaglepipe.training.data.order import split_samples
from tests.studies.codecs_run import HELDOUT_FRACTION


@dataclass(frozen=True, kw_only=True)
class StateReport:
    """Figures by aux layer, and of last hidden states if both caches have them, else None."""

    aux_decibels: tuple[float | None, ...]  # signal to error; None: no error
    last_decibels: float | None
    aux_peaks: tuple[float, ...]  # largest magnitude over root mean square of a token: median over tokens
    last_peak: float | None


def measure_states(exact: Path, folder: Path) -> StateReport:
    """Compare a variant's states with the exact cache's on its held-out samples."""
    source, cache = Cache.open(exact), Cache.open(folder)
    signal, error, last_signal, last_error = 0.0, 0.0, 0.0, 0.0
    peaks, last_peaks = [], []
    for number in split_samples(source.index.sample_ids, HELDOUT_FRACTION).heldout.tolist():
        sample, other = source.read(number), cache.read(number)
        states = _aux(source, sample)[1:]
        signal = signal + states.square().sum((0, 2))
        error = error + (_aux(cache, other)[1:] - states).square().sum((0, 2))
        peaks.append(_peak(states))
        last, again = _last(source, sample), _last(cache, other)
        if last is not None:
            last_peaks.append(_peak(last))
        if last is not None and again is not None:
            last_signal += float(last.square().sum())
            last_error += float((again - last).square().sum())
    assert isinstance(signal, torch.Tensor) and isinstance(error, torch.Tensor)
    return StateReport(
        aux_decibels=tuple(_decibels(*pair) for pair in zip(signal.tolist(), error.tolist(), strict=True)),
        last_decibels=_decibels(last_signal, last_error),
        aux_peaks=tuple(torch.cat(peaks).median(0).values.tolist()),
        last_peak=float(torch.cat(last_peaks).median()) if last_peaks else None,
    )


def _aux(cache: Cache, sample: CachedSample) -> torch.Tensor:
    """[T, A, Ht], float64."""
    scales = None if sample.aux_scales is None else torch.from_numpy(sample.aux_scales.copy())
    encoded = EncodedRows(payload=torch.from_numpy(sample.aux_payload.copy()), scales=scales)
    return cache.spec.decode_aux(encoded).double()


def _last(cache: Cache, sample: CachedSample) -> torch.Tensor | None:
    """[S, Ht] of supervised tokens, float64; None if probabilities are stored."""
    kind = cache.spec.kind
    if kind.stores_probabilities or not isinstance(kind, RowSupervision):
        return None
    return kind.decode_rows(take_rows(sample.supervision, np.arange(int(sample.supervised.sum())))).double()


def _peak(states: torch.Tensor) -> torch.Tensor:
    return states.abs().amax(-1) / states.square().mean(-1).sqrt()


def _decibels(signal: float, error: float) -> float | None:
    return 10 * math.log10(signal / error) if error > 0 else None
