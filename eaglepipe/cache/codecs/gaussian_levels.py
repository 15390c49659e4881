"""The levels of Lloyd-Max quantisers of a Gaussian of variance 1, as the schema file has them.

J. Max, "Quantizing for minimum distortion" (1960): the levels of least mean squared error, each the mean of the values
that it stands for.
"""

import functools
import json

import numpy as np
from numpy.typing import NDArray

from eaglepipe.resources import schema_folder

STEPS_PER_UNIT = 256
"""Thresholds between levels are multiples of 1 / this, so that a table finds a value's code."""
LARGEST = 4.0
"""Above all thresholds."""


@functools.cache
def gaussian_levels(codec: str) -> NDArray[np.float32]:
    """Return the 2^bits levels of a codec, ascending: the listed ones and their negatives."""
    codecs = json.loads((schema_folder(1) / "shard.json").read_text())["codecs"]
    positive = np.array(codecs[codec]["levels"], np.float32)
    levels = np.concatenate([-positive[::-1], positive])
    levels.setflags(write=False)
    return levels


@functools.cache
def code_table(codec: str) -> NDArray[np.uint8]:
    """Return the code of the nearest level of each step from -LARGEST to LARGEST, uint8 [2·LARGEST·STEPS_PER_UNIT]."""
    levels = gaussian_levels(codec)
    thresholds = np.round((levels[1:] + levels[:-1]) / 2 * STEPS_PER_UNIT)
    first = int(LARGEST * STEPS_PER_UNIT)
    table = np.searchsorted(thresholds, np.arange(-first, first), side="right").astype(np.uint8)
    table.setflags(write=False)
    return table
