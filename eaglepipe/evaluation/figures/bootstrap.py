"""Bootstrap intervals of ratios of sums: samples are drawn with replacement, added up, and divided once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1_000
COVERAGE = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its 95% interval, None if there are only totals."""

    value: float
    low: float | None
    high: float | None

    def text(self, digits: int = 3) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(counts: Floats, figure: Callable[[Floats], Floats], *, seed: int) -> list[Estimate]:
    """Estimate the F figures of summed counts [N, C], one row a sample; `figure` maps sums [..., C] to [..., F]."""
    generator = np.random.default_rng([seed, len(counts)])
    resamples = generator.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
    tail = 50 * (1 - COVERAGE)
    bounds = np.percentile(figure(resamples @ counts), [tail, 100 - tail], axis=0)
    figures = np.stack([figure(counts.sum(axis=0)), *bounds], axis=-1)
    return [Estimate(value=value, low=low, high=high) for value, low, high in figures.tolist()]
