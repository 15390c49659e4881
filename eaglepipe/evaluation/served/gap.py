"""The gap between a draft as an engine serves it and as it decodes here, on the same prompts, counted alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from eaglepipe.evaluation.figures.bootstrap import Estimate, bootstrap
from eaglepipe.evaluation.figures.engine_count import EngineCount, count_rows
from eaglepipe.evaluation.figures.measured_sets import Measured
from eaglepipe.evaluation.figures.measurement import Measurement

MAX_LENGTH_GAP = 0.02  # of the acceptance length
MAX_POSITION_GAP = 0.02  # of the rounds, at any position


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Served against real figures of one draft method on one set of prompts; positive if the engine accepts more."""

    method: str
    data: str
    engine: str
    served: EngineCount
    real: EngineCount
    length_interval: tuple[float, float] | None  # 95%, of `length`; None without counts of single prompts
    is_beyond_noise: bool
    prompts: int
    other_texts: int  # prompts whose greedy answers differ between engine and real decoding
    causes: tuple[str, ...] = ()

    @property
    def length(self) -> float:
        """Gap of the acceptance length, as a share of the real one."""
        return self.served.acceptance_length / self.real.acceptance_length - 1

    @property
    def positions(self) -> tuple[float, ...]:
        """Gap of the acceptance by position, as shares of the rounds."""
        pairs = zip(self.served.acceptance_by_position, self.real.acceptance_by_position, strict=False)
        return tuple(served - real for served, real in pairs)

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "data": self.data,
            "engine": self.engine,
            "acceptance_length": self.length,
            "acceptance_length_interval": self.length_interval,
            "acceptance_by_position": list(self.positions),
            "is_beyond_noise": self.is_beyond_noise,
            "prompts": self.prompts,
            "other_texts": self.other_texts,
            "causes": list(self.causes),
        }

    def lines(self) -> list[str]:
        """Return a sentence on the gap, and one for each likely cause."""
        lengths = f"{self.served.acceptance_length:.3f} in {self.engine}, {self.real.acceptance_length:.3f} here"
        points = max(map(abs, self.positions), default=0.0) * 100
        text = f"; {self.other_texts} of {self.prompts} answers have another text" * (self.other_texts > 0)
        where = f"{self.method}, {self.data}"
        if not self.is_beyond_noise:
            return [
                f"{where}: served and real agree: acceptance length {lengths} ({self.length:+.1%}), "
                f"by position at most {points:.1f} points apart{text}"
            ]
        verb = "loses acceptance" if self.length < 0 else "accepts more than it does here"
        shares = " ".join(f"{share:.0%}" for share in self.served.acceptance_by_position)
        real_shares = " ".join(f"{share:.0%}" for share in self.real.acceptance_by_position)
        return [
            f"GAP: {where}: served, the draft {verb}: acceptance length {lengths} ({self.length:+.1%}); "
            f"by position {shares}, here {real_shares}{text}",
            *(f"  likely cause: {cause}" for cause in self.causes),
        ]


def compare(served: Measured, real: Measured, *, seed: int) -> Gap:
    """Compare counts of one method on the same prompts; samples are drawn in pairs to tell a gap from noise."""
    depth = real.measurement.method.depth
    served_count = served.measurement.count
    assert served_count is not None
    ids = real.prompts.sample_ids
    answers = zip(served.decoded.answers, real.decoded.answers, strict=True)
    other = [one.token_ids != another.token_ids for one, another in answers]
    rows = np.concatenate(
        [count_rows(side.decoded.answers, ids, depth) for side in (served, real)], axis=1
    )  # [N, 2 * (1 + K)]
    estimates = bootstrap(rows, lambda sums: _differences(sums, depth), seed=seed)
    return _gap(
        served.measurement,
        served_count,
        real,
        estimates,
        other_texts=sum(other) if real.measurement.conditions.rule.greedy else 0,
    )


def _gap(
    served: Measurement, count: EngineCount, real: Measured, estimates: Sequence[Estimate], *, other_texts: int
) -> Gap:
    assert real.measurement.count is not None
    length, *positions = estimates
    limits = (MAX_LENGTH_GAP, *(MAX_POSITION_GAP for _ in positions))
    assert length.low is not None and length.high is not None
    beyond = any(
        abs(estimate.value) > limit and not (estimate.low or 0) <= 0 <= (estimate.high or 0)
        for estimate, limit in zip(estimates, limits, strict=True)
    )
    return Gap(
        method=real.measurement.method.label,
        data=real.measurement.conditions.data,
        engine=str(served.conditions.engine),
        served=count,
        real=real.measurement.count,
        length_interval=(length.low, length.high),
        is_beyond_noise=beyond,
        prompts=real.measurement.prompts,
        other_texts=other_texts,
    )


def compare_totals(served: Sequence[Measurement], real: Sequence[Measured], *, seed: int) -> list[Gap]:
    """Compare totals of a server with the real figures of the same method and prompts; noise is that of the latter."""
    found = {(m.measurement.method, m.measurement.conditions.data): m for m in real}
    gaps = []
    for total in served:
        match = found.get((total.method, total.conditions.data))
        if match is None or total.count is None or match.measurement.count is None:
            continue
        depth = len(total.count.accepted_by_position)
        shares = np.array(total.count.acceptance_by_position)
        rows = count_rows(match.decoded.answers, match.prompts.sample_ids, match.measurement.method.depth)
        if depth < match.measurement.method.depth:  # the server does not tell positions, only all together
            rows = np.stack([rows[:, 0], rows[:, 1:].sum(axis=1)], axis=1)
        constant = np.concatenate([[1.0], shares])
        estimates = bootstrap(rows, partial(_differences_to, constant=constant), seed=seed)
        gaps.append(_gap(total, total.count, match, estimates, other_texts=0))
    return gaps


def pair(served: Sequence[Measured], real: Sequence[Measured]) -> list[tuple[Measured, Measured]]:
    """Return served figures of a draft with the real ones of the same method and prompts."""
    found = {(m.measurement.method, m.measurement.conditions.data): m for m in real}
    keys = [(m, (m.measurement.method, m.measurement.conditions.data)) for m in served if m.measurement.method.depth]
    return [(m, found[key]) for m, key in keys if key in found]


def _differences_to(sums: np.ndarray, *, constant: np.ndarray) -> np.ndarray:
    """Return `_differences` of served counts that are totals alone: [..., 1 + K] of real sums [..., 1 + K]."""
    served = np.broadcast_to(constant, (*sums.shape[:-1], len(constant)))
    return _differences(np.concatenate([served, sums], axis=-1), len(constant) - 1)


def _differences(sums: np.ndarray, depth: int) -> np.ndarray:
    """Return the relative gap of the length and the gaps by position [..., 1 + K] of sums [..., 2 * (1 + K)]."""
    served, real = sums[..., : 1 + depth], sums[..., 1 + depth :]
    served_shares = served[..., 1:] / np.maximum(served[..., :1], 1)
    real_shares = real[..., 1:] / np.maximum(real[..., :1], 1)
    length = (1 + served_shares.sum(-1)) / (1 + real_shares.sum(-1)) - 1
    return np.concatenate([length[..., None], served_shares - real_shares], axis=-1)
