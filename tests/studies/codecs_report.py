"""The table of `study codecs`: what each encoding costs, what it does to a draft, and which promises that keeps."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.studies.codecs_run import RunResult
from tests.studies.codecs_states import StateReport
from tests.studies.codecs_supervision import SupervisionError
from tests.studies.codecs_variants import EXACT, RENORMALISED
from tests.studies.spread import Spread


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """One line; differences are to the draft of the same seed that learned from the exact cache."""

    name: str
    bytes_per_token: float
    aux_relative_rms: float
    supervision: SupervisionError
    states: StateReport | None
    runs: tuple[RunResult, ...]
    loss: Spread
    acceptance_length: Spread
    sampled_acceptance_length: Spread
    loss_difference: Spread
    acceptance_length_difference: Spread
    sampled_acceptance_length_difference: Spread


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
        if "lean" in lines:
            loss = -lines["lean"].acceptance_length_difference.mean
            found.append(_at_most("lean: acceptance length lost", loss, 0.02))
        if "tiny" in lines:
            share = -lines["tiny"].acceptance_length_difference.mean / lines[EXACT].acceptance_length.mean
            found.append(_at_most("tiny: share of the acceptance length lost", share, 0.02))
        for name, line in lines.items():
            if (plain := lines.get(name + RENORMALISED)) is not None:
                found.extend(_tail_against_renormalised(name, line, plain))
        return found

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdicts": [asdict(verdict) for verdict in self.verdicts()]}

    def table(self) -> str:
        """A line a variant, then the promises."""
        lines = [
            f"study codecs: {self.target}, {self.steps} steps, seeds {', '.join(map(str, self.seeds))}, judged on "
            f"{self.heldout_samples} held-out samples of the exact cache (mean ± standard deviation)",
            f"{'':26} {'':>7} {'':>8} {'':>8} {'':>7} {'greedy':>11} {'sampled':>11} {'differences to exact:':>24}",
            f"{'':26} {'bytes':>7} {'entries':>8} {'KL':>8} {'loss':>7} {'acceptance':>11} {'acceptance':>11} "
            f"{'loss':>20} {'greedy acceptance':>19} {'sampled acceptance':>19}",
            *(_row(line) for line in self.variants),
            *_state_rows(self.variants),
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
    states: StateReport | None = None,
) -> VariantReport:
    """A line from the runs of a variant and those of the exact cache, both by seed in the same order."""
    assert [run.seed for run in runs] == [run.seed for run in exact]
    return VariantReport(
        name=name,
        bytes_per_token=bytes_per_token,
        aux_relative_rms=aux_relative_rms,
        supervision=supervision,
        states=states,
        runs=tuple(runs),
        loss=_spread(runs, "loss"),
        acceptance_length=_spread(runs, "acceptance_length"),
        sampled_acceptance_length=_spread(runs, "sampled_acceptance_length"),
        loss_difference=_spread(runs, "loss", exact),
        acceptance_length_difference=_spread(runs, "acceptance_length", exact),
        sampled_acceptance_length_difference=_spread(runs, "sampled_acceptance_length", exact),
    )


def _spread(runs: Sequence[RunResult], figure: str, less: Sequence[RunResult] = ()) -> Spread:
    """A figure of the runs over seeds, or what it is above that of the runs `less`, seed by seed."""
    values = [float(getattr(run, figure)) for run in runs]
    if less:
        values = [value - getattr(other, figure) for value, other in zip(values, less, strict=True)]
    return Spread.of(values)


def _tail_against_renormalised(name: str, line: VariantReport, plain: VariantReport) -> list[Verdict]:
    """What the bucket is worth, against the same entries renormalised: above 0 is better."""
    assert plain.supervision.kl is not None and line.supervision.kl is not None
    gains = {
        "KL to exact below that of the same entries renormalised, by": plain.supervision.kl - line.supervision.kl,
        "held-out loss below theirs, by": plain.loss.mean - line.loss.mean,
        "sampled acceptance length above theirs, by": (
            line.sampled_acceptance_length.mean - plain.sampled_acceptance_length.mean
        ),
        "greedy acceptance length above theirs, by": line.acceptance_length.mean - plain.acceptance_length.mean,
    }
    return [_above(f"{name}: {what}", gain) for what, gain in gains.items()]


def _at_most(what: str, value: float, limit: float) -> Verdict:
    return Verdict(what=what, value=value, limit=limit, holds=value <= limit)


def _above(what: str, value: float) -> Verdict:
    return Verdict(what=what, value=value, limit=0.0, holds=value > 0.0)


def _row(line: VariantReport) -> str:
    differences = "".join(
        f" {spread.show(digits, sign='+'):>19}"
        for spread, digits in (
            (line.loss_difference, 4),
            (line.acceptance_length_difference, 3),
            (line.sampled_acceptance_length_difference, 3),
        )
    )
    kl = _divergence(line.supervision.kl)
    return (
        f"{line.name:26} {line.bytes_per_token:>7,.0f} {line.supervision.entries:>8,.1f} {kl:>8} "
        f"{line.loss.mean:>7.4f} {line.acceptance_length.mean:>11.3f} {line.sampled_acceptance_length.mean:>11.3f}"
        f"{differences}"
    )


def _divergence(kl: float | None) -> str:
    return "-" if kl is None else f"{kl:.4f}"


def _state_rows(lines: Sequence[VariantReport]) -> list[str]:
    """The loudest channel of each layer, and the signal-to-error ratio that each encoding leaves it."""
    measured = [(line.name, line.states) for line in lines if line.states is not None]
    if not measured:
        return []
    first = measured[0][1]
    rows = [("largest / RMS, median", (*first.aux_peaks, first.last_peak))]
    rows += [(f"{name}, dB", (*states.aux_decibels, states.last_decibels)) for name, states in measured]
    shown = [(name, figures) for name, figures in rows if any(figure is not None for figure in figures)]
    return [
        "states by aux layer, and last hidden states:",
        *(
            f"{name:26} " + " ".join(f"{'-' if x is None else f'{x:.1f}':>7}" for x in figures)
            for name, figures in shown
        ),
    ]
