"""The signal-to-error ratio and the peaks that the study prints, against plain sums over the caches' own values."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.training.data.order import split_samples
from tests.cache.derived import aux_of, rows_of
from tests.studies.codecs_run import HELDOUT_FRACTION
from tests.studies.codecs_states import measure_states


def test_ratio_and_peaks_by_layer_are_those_of_the_stored_values(sealed_cache: Path, tmp_path: Path) -> None:
    recode_cache(tmp_path / "lean", sealed_cache, Changes(aux_codec="rot4", codec="rot5"))
    ids = Cache.open(sealed_cache).index.sample_ids
    names = [ids[number] for number in split_samples(ids, HELDOUT_FRACTION).heldout.tolist()]
    before, after = aux_of(sealed_cache), aux_of(tmp_path / "lean")
    old, new = (torch.cat([states[name][1:].double() for name in names]).numpy() for states in (before, after))
    found = measure_states(sealed_cache, tmp_path / "lean")
    for layer in range(3):
        x, error = old[:, layer], new[:, layer] - old[:, layer]
        assert found.aux_decibels[layer] == pytest.approx(10 * math.log10((x**2).sum() / (error**2).sum()))
        assert found.aux_peaks[layer] == pytest.approx(
            np.median(np.abs(x).max(-1) / np.sqrt((x**2).mean(-1))), rel=0.02
        )
    rows, again = rows_of(sealed_cache), rows_of(tmp_path / "lean")
    signal = sum(float(rows[name].square().sum()) for name in names)
    noise = sum(float((again[name] - rows[name]).square().sum()) for name in names)
    assert found.last_decibels == pytest.approx(10 * math.log10(signal / noise), rel=1e-4)


def test_nothing_is_compared_that_is_not_stored(sealed_cache: Path, tmp_path: Path) -> None:
    recode_cache(tmp_path / "dense", sealed_cache, Changes(supervision="dense"))
    found = measure_states(sealed_cache, tmp_path / "dense")
    assert found.aux_decibels == (None, None, None) and found.last_decibels is None and found.last_peak is not None
