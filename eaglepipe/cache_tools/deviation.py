"""Errors of a re-encoded cache: sums that add up over shards, and the report made of them."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

# Half of float16's smallest number: a probability stored as 0 was below it.
_LEAST_PROBABILITY = 2.0**-25


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """Differences of decoded numbers."""

    largest: float = 0.0
    absolute: float = 0.0  # sum of |new - old|
    squares: float = 0.0  # sum of (new - old)²
    signal: float = 0.0  # sum of old²
    count: int = 0

    @classmethod
    def between(cls, old: torch.Tensor, new: torch.Tensor) -> "Deviation":
        """Compare two tensors of one shape, in float64."""
        if old.numel() == 0:
            return cls()
        difference = (new.double() - old.double()).abs()
        return cls(
            largest=float(difference.max()),
            absolute=float(difference.sum()),
            squares=float(difference.square().sum()),
            signal=float(old.double().square().sum()),
            count=old.numel(),
        )

    def __add__(self, other: "Deviation") -> "Deviation":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Deviation(**{**sums, "largest": max(self.largest, other.largest)})

    def report(self) -> dict[str, float]:
        """Return largest and mean absolute deviation, and the root mean square relative to that of the old numbers."""
        return {
            "max": self.largest,
            "mean": self.absolute / max(1, self.count),
            "relative_rms": math.sqrt(self.squares / self.signal) if self.signal else 0.0,
        }


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """KL(source ‖ new) of distributions over one draft vocabulary, in nats."""

    largest: float = 0.0
    total: float = 0.0
    rows: int = 0

    @classmethod
    def between(cls, source: torch.Tensor, new: torch.Tensor) -> "Divergence":
        """Compare distributions [n, D], or [n, D + 1] the tail of sparse supervision being one more outcome.

        A probability stored as 0 counts as half of float16's smallest.
        """
        if source.shape[0] == 0:
            return cls()
        p, q = source.double(), new.double().clamp(min=_LEAST_PROBABILITY)
        kl = (torch.special.xlogy(p, p) - p * q.log()).sum(dim=-1).clamp(min=0.0)
        return cls(largest=float(kl.max()), total=float(kl.sum()), rows=source.shape[0])

    def __add__(self, other: "Divergence") -> "Divergence":
        largest = max(self.largest, other.largest)
        return Divergence(largest=largest, total=self.total + other.total, rows=self.rows + other.rows)

    def report(self) -> dict[str, float]:
        return {"kl_max": self.largest, "kl_mean": self.total / max(1, self.rows)}


@dataclass(frozen=True, kw_only=True)
class RecodeSums:
    """Errors and coverage of the samples of a shard."""

    aux: Deviation = Deviation()
    rows: Deviation = Deviation()
    kl: Divergence = Divergence()
    mass_before: float = 0.0
    mass_after: float = 0.0
    inside_before: int = 0  # supervised tokens whose top-1 is in the draft vocabulary
    inside_after: int = 0
    supervised: int = 0

    def __add__(self, other: "RecodeSums") -> "RecodeSums":
        return RecodeSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RecodeSums":
        """The inverse of `dataclasses.asdict`."""
        kinds = {"aux": Deviation, "rows": Deviation, "kl": Divergence}
        return cls(**{**values, **{name: kind(**values[name]) for name, kind in kinds.items()}})

    def report(self, column: str, *, has_divergence: bool = True) -> dict[str, dict[str, float]]:
        """Return errors by column, and the share of the target in the draft vocabulary before and after.

        Args:
            has_divergence: False for supervision that was drawn, which has none.
        """
        supervised = max(1, self.supervised)
        return {
            "aux_hidden_states": self.aux.report(),
            column: {**self.rows.report(), **(self.kl.report() if has_divergence else {})},
            "draft_mass": {"mean_before": self.mass_before / supervised, "mean_after": self.mass_after / supervised},
            "position_mask": {
                "share_before": self.inside_before / supervised,
                "share_after": self.inside_after / supervised,
            },
        }
