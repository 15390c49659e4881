"""Deviations of numbers in two caches, as sums that are added up over samples.

Shapes: n rows at once, W numbers a row, D draft vocabulary.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

_LEAST_PROBABILITY = 2.0**-25  # half of float16's smallest number: a probability stored as 0 was below it


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Numbers that add up; those named `largest...` are the largest of both."""

    def __add__(self, other: Self) -> Self:
        values = {}
        for name in (field.name for field in fields(self)):
            mine, others = getattr(self, name), getattr(other, name)
            values[name] = max(mine, others) if name.startswith("largest") else mine + others
        return type(self)(**values)


@dataclass(frozen=True, kw_only=True)
class StateSums(Sums):
    """Relative errors of rows: the norm of the difference over the norm of the first cache's row."""

    largest: float = 0.0
    largest_absolute: float = 0.0  # of a single number
    total: float = 0.0
    squares: float = 0.0  # of the differences
    signal: float = 0.0  # of the first cache's numbers
    rows: int = 0

    @classmethod
    def between(cls, a: torch.Tensor, b: torch.Tensor) -> "StateSums":
        """Compare rows [n, W]; a row that only one cache has as zeros has error 1."""
        if a.shape[0] == 0:
            return cls()
        old, difference = a.double(), b.double() - a.double()
        error, size = difference.norm(dim=-1), old.norm(dim=-1)
        relative = torch.where(size > 0, error / size, (error > 0).double())
        return cls(
            largest=float(relative.max()),
            largest_absolute=float(difference.abs().max()),
            total=float(relative.sum()),
            squares=float(difference.square().sum()),
            signal=float(old.square().sum()),
            rows=a.shape[0],
        )

    def report(self) -> dict[str, Any]:
        return {
            "max": self.largest,
            "mean": self.total / max(1, self.rows),
            "rms": math.sqrt(self.squares / self.signal) if self.signal else 0.0,
            "max_absolute": self.largest_absolute,
            "rows": self.rows,
        }


@dataclass(frozen=True, kw_only=True)
class ProbabilitySums(Sums):
    """Absolute differences of probabilities, and KL(a ‖ b) in nats."""

    largest: float = 0.0
    total: float = 0.0  # sums over a row, halved: the total variation
    largest_kl: float = 0.0
    kl: float = 0.0
    rows: int = 0

    @classmethod
    def between(cls, a: torch.Tensor, b: torch.Tensor) -> "ProbabilitySums":
        """Compare distributions [n, outcomes]; a probability of 0 in `b` counts as half of float16's smallest."""
        if a.shape[0] == 0:
            return cls()
        p, q = a.double(), b.double()
        difference = (p - q).abs()
        kl = (torch.special.xlogy(p, p) - p * q.clamp(min=_LEAST_PROBABILITY).log()).sum(dim=-1).clamp(min=0.0)
        return cls(
            largest=float(difference.max()),
            total=float(difference.sum()) / 2,
            largest_kl=float(kl.max()),
            kl=float(kl.sum()),
            rows=a.shape[0],
        )

    def report(self) -> dict[str, Any]:
        rows = max(1, self.rows)
        return {
            "max": self.largest,
            "mean_total_variation": self.total / rows,
            "kl_max": self.largest_kl,
            "kl_mean": self.kl / rows,
            "rows": self.rows,
        }


@dataclass(frozen=True, kw_only=True)
class NumberSums(Sums):
    """Absolute differences of single numbers."""

    largest: float = 0.0
    total: float = 0.0
    rows: int = 0

    @classmethod
    def between(cls, a: torch.Tensor, b: torch.Tensor) -> "NumberSums":
        if a.numel() == 0:
            return cls()
        difference = (a.double() - b.double()).abs()
        return cls(largest=float(difference.max()), total=float(difference.sum()), rows=a.numel())

    def report(self) -> dict[str, Any]:
        return {"max": self.largest, "mean": self.total / max(1, self.rows), "rows": self.rows}


@dataclass(frozen=True, kw_only=True)
class EqualitySums(Sums):
    """Rows that must be the same in both."""

    different: int = 0
    rows: int = 0

    @classmethod
    def between(cls, different: Any) -> "EqualitySums":
        """Count the true among booleans [n]."""
        return cls(different=int(different.sum()), rows=len(different))

    def report(self) -> dict[str, Any]:
        return {"different": self.different, "rows": self.rows, "share_equal": 1 - self.different / max(1, self.rows)}
