"""The table of `bench codecs`: what each encoding costs, what it does to a draft, and which promises that keeps."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eaglepipe.bench.codecs_run import RunResult
from eaglepipe.bench.codecs_supervision import SupervisionError
from eaglepipe.bench.codecs_variants import EXACT, RENORMALISED


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over seeds; the latter is 0 of one seed."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(mean=statistics.fmean(values), deviation=statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """One line; differences are to the draft of the same seed that learned from the exact cache."""

    name: str
    bytes_per_token: float
    aux_relative_rms: float
    supervision: SupervisionError
    runs: tuple[RunResult, ...]
    loss: Spread
    acceptance_length: Spread
    loss_difference: Spread
    acceptance_length_difference: Spread


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A promise and whether the figures keep it."""

    what: str
    value: float
    limit: float
    holds: bool


@dataclass(frozen=True, kw_only=True)
class CodecsReport:
    """All lines, the exact one first."""

    target: str
    steps: int
    seeds: tuple[int, ...]
    heldout_samples: int
    variants: tuple[VariantReport, ...]

    def verdicts(self) -> list[Verdict]:
        """What profiles and the tail's bucket are meant to do, as far as the table has the lines for it."""
        lines = {line.name: line for line in self.variants}
        found: list[Verdict] = []
        if "compact" in lines:
            loss = -lines["compact"].acceptance_length_difference.mean
            found.append(_at_most("compact: acceptance length lost", loss, 0.05))
        if "tiny" in lines:
            share = -lines["tiny"].acceptance_length_difference.mean / lines[EXACT].acceptance_length.mean
            found.append(_at_most("tiny: share of the acceptance length lost", share, 0.02))
        for name, line in lines.items():
            if (plain := lines.get(name + RENORMALISED)) is not None:
                less, longer = (
                    plain.loss.mean - line.loss.mean,
                    line.acceptance_length.mean - plain.acceptance_length.mean,
                )
                found.append(_above(f"{name}: held-out loss below that of the same entries renormalised, by", less))
                found.append(_above(f"{name}: acceptance length above theirs, by", longer))
                nearer = plain.supervision.kl - line.supervision.kl
                found.append(_above(f"{name}: KL to exact below theirs, by", nearer))
        return found

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdicts": [asdict(verdict) for verdict in self.verdicts()]}

    def table(self) -> str:
        """A line a variant, then the promises."""
        lines = [
            f"bench codecs: {self.target}, {self.steps} steps, seeds {', '.join(map(str, self.seeds))}, judged on "
            f"{self.heldout_samples} held-out samples of the exact cache (mean ± standard deviation)",
            f"{'':26} {'bytes':>7} {'entries':>8} {'KL':>8} {'loss':>7} {'acceptance':>11} {'loss, to exact':>16} "
            f"{'acceptance, to exact':>21}",
            *(_row(line) for line in self.variants),
        ]
        for verdict in self.verdicts():
            sign = "<=" if "lost" in verdict.what else ">"
            word = "holds" if verdict.holds else "FAILS"
            lines.append(f"{word}: {verdict.what} {verdict.value:.4f} {sign} {verdict.limit:g}")
        return "\n".join(lines)


def describe_variant(
    name: str,
    runs: Sequence[RunResult],
    exact: Sequence[RunResult],
    *,
    bytes_per_token: float,
    aux_relative_rms: float,
    supervision: SupervisionError,
) -> VariantReport:
    """A line from the runs of a variant and those of the exact cache, both by seed in the same order."""
    pairs = list(zip(runs, exact, strict=True))
    assert all(ours.seed == theirs.seed for ours, theirs in pairs)
    return VariantReport(
        name=name,
        bytes_per_token=bytes_per_token,
        aux_relative_rms=aux_relative_rms,
        supervision=supervision,
        runs=tuple(runs),
        loss=Spread.of([run.loss for run in runs]),
        acceptance_length=Spread.of([run.acceptance_length for run in runs]),
        loss_difference=Spread.of([ours.loss - theirs.loss for ours, theirs in pairs]),
        acceptance_length_difference=Spread.of(
            [ours.acceptance_length - theirs.acceptance_length for ours, theirs in pairs]
        ),
    )


def _at_most(what: str, value: float, limit: float) -> Verdict:
    return Verdict(what=what, value=value, limit=limit, holds=value <= limit)


def _above(what: str, value: float) -> Verdict:
    return Verdict(what=what, value=value, limit=0.0, holds=value > 0.0)


def _row(line: VariantReport) -> str:
    loss, length = line.loss_difference, line.acceptance_length_difference
    return (
        f"{line.name:26} {line.bytes_per_token:>7,.0f} {line.supervision.entries:>8,.1f} {line.supervision.kl:>8.4f} "
        f"{line.loss.mean:>7.4f} {line.acceptance_length.mean:>11.3f} {loss.mean:>+8.4f} ±{loss.deviation:<6.4f} "
        f"{length.mean:>+12.3f} ±{length.deviation:<6.3f}"
    )
