"""All figures of an evaluation, as JSON and as text, each with the conditions it was measured under."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from operator import mul
from typing import Any

from eaglepipe.evaluation.figures.bootstrap import Estimate
from eaglepipe.evaluation.figures.measurement import Measurement
from eaglepipe.evaluation.heldout_figures import HeldoutFigures
from eaglepipe.evaluation.served.gap import Gap
from eaglepipe.evaluation.target_match import TargetMatch
from eaglepipe.tables import text_table

_HELDOUT_COLUMNS = ("data", "samples", "slots", "loss", "acceptance length [95%]", "outside draft vocabulary")
_COLUMNS = ("drafter", "shape", "K", "T", "top-p", "batch", "data", "kind", "prompts", "acceptance length [95%]",
            "tokens/forward", "speed", "identical", "rounds accepting more than 0, 1, ... guesses")  # fmt: skip
_SERVED_COLUMNS = ("as engines count", "gap", "tokens/s")  # only if an engine served the draft


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Result of an evaluation; `eval.json` in the run's folder holds its JSON."""

    run: str
    heldout: tuple[HeldoutFigures, ...]
    bigram_acceptance_length: float  # counted like the held-out figures: a chain from every position
    own_text_share: float  # of the replayed text, the share that is the target's greedy choice
    unseen_vocabulary_share: float | None  # of held-out targets; in the draft vocabulary and in no training answer
    measurements: tuple[Measurement, ...]
    gaps: tuple[Gap, ...] = ()  # between served and real figures
    notes: tuple[str, ...] = ()
    target: TargetMatch

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "heldout_depths": self.heldout[0].num_depths,
            "heldout": [asdict(figures) for figures in self.heldout],
            "bigram_acceptance_length": self.bigram_acceptance_length,
            "own_text_share": self.own_text_share,
            "unseen_vocabulary_share": self.unseen_vocabulary_share,
            "target_matches": self.target.matches,
            "notes": list(self.notes),
            "gaps": [gap.to_json() for gap in self.gaps],
            "figures": [measurement.to_json() for measurement in self.measurements],
            "table": self.table(),
        }

    def table(self) -> str:
        """Return two tables with their notes, and the warning on real decoding if there is one."""
        whole = self.heldout[0]
        conditional = [estimate.value for estimate in whole.conditional_acceptance_by_depth]
        lengths = list(accumulate(accumulate(conditional, mul), initial=1.0))[1:]  # of a chain of 1, 2, ... guesses
        lines = [
            f"every held-out position alike: simulated, chain, K = {whole.num_depths}, greedy, teacher-forced",
            text_table(dict.fromkeys(_HELDOUT_COLUMNS, "left"), map(_heldout_cells, self.heldout), indent=2),
            f"  bigram table, all: acceptance length {self.bigram_acceptance_length:.3f}",
            f"  accuracy by depth       {_percentages(whole.accuracy_by_depth)}",
            f"  accepted if all before  {_percentages(whole.conditional_acceptance_by_depth)}",
            f"  acceptance length       {' '.join(f'{length:.2f}' for length in lengths)}, for K = 1, 2, ...",
            *self._vocabulary_note(),
            "",
            "rounds as an engine makes them: tokens a round adds",
            self._rounds_table(),
            f"  simulated: rounds replayed on cached text, {self.own_text_share:.1%} of it the target's greedy choice",
        ]
        for measurement in self.measurements:
            if measurement.first_difference is not None:
                engine = measurement.conditions.engine
                where = "" if engine is None else f" in {engine}"
                note = f"differs from the target alone{where} on {measurement.first_difference}"
                lines.append(f"  {measurement.method.label}: {note}")
        if any(measurement.conditions.kind == "served" for measurement in self.measurements):
            lines.append("  as engines count: 1 + accepted / rounds, guesses beyond the end of an answer included")
        lines += [f"  {line}" for gap in self.gaps for line in gap.lines()]
        lines += [f"  {note}" for note in self.notes]
        if self.target.warning is not None:
            lines.append(f"  WARNING: {self.target.warning}")
        return "\n".join(lines)

    def _rounds_table(self) -> str:
        """Return a row for each measurement; those of an engine have columns of their own, before the last."""
        rows = [_cells(measurement) for measurement in self.measurements]
        columns = list(_COLUMNS)
        if any(measurement.conditions.kind == "served" for measurement in self.measurements):
            columns[-1:-1] = _SERVED_COLUMNS
            served = [_served_cells(measurement, self.gaps) for measurement in self.measurements]
            rows = [(*row[:-1], *more, row[-1]) for row, more in zip(rows, served, strict=True)]
        return text_table(dict.fromkeys(columns, "left"), rows, indent=2)

    def _vocabulary_note(self) -> list[str]:
        if self.unseen_vocabulary_share is None:
            return []
        return [
            "  draft vocabulary: chosen from all samples, held-out ones included; "
            f"{self.unseen_vocabulary_share:.2%} of the held-out targets are in it and in no training answer"
        ]


def _heldout_cells(figures: HeldoutFigures) -> tuple[str, ...]:
    return (
        figures.source,
        f"{figures.samples:,}",
        f"{figures.slots:,}",
        f"{figures.loss:.3f}",
        figures.acceptance_length.text(),
        f"{figures.outside_vocabulary.value:.2%} of tokens, {figures.mass_outside.value:.2%} of mass",
    )


def _cells(measurement: Measurement) -> tuple[str, ...]:
    method, conditions = measurement.method, measurement.conditions
    shapes = {"none": "", "tree": f"tree of {method.size}"}
    return (
        method.drafter,
        shapes.get(method.shape, method.shape),
        str(method.depth or ""),
        f"{conditions.rule.temperature:g}",
        f"{conditions.rule.top_p:g}",
        str(conditions.batch_size),
        conditions.data,
        conditions.kind_label,
        str(measurement.prompts),
        measurement.acceptance_length.text(2),
        f"{measurement.tokens_per_forward:.2f}",
        "" if measurement.speedup is None else f"{measurement.speedup:.2f}x",
        {None: "", True: "yes", False: "NO"}[measurement.identical],
        " ".join(f"{share:.0%}" for share in measurement.acceptance_by_depth),
    )


def _served_cells(measurement: Measurement, gaps: Sequence[Gap]) -> tuple[str, ...]:
    conditions = measurement.conditions
    count = measurement.count if measurement.method.depth else None
    gap = None
    if conditions.kind == "served":
        key = (measurement.method.label, conditions.data)
        gap = next((gap for gap in gaps if (gap.method, gap.data) == key), None)
    return (
        "" if count is None else f"{count.acceptance_length:.2f}",
        "" if gap is None else f"{gap.length:+.1%}",
        "" if measurement.tokens_per_s is None else f"{measurement.tokens_per_s:,.0f}",
    )


def _percentages(estimates: Sequence[Estimate]) -> str:
    return " ".join(f"{estimate.value:.1%}" for estimate in estimates)
