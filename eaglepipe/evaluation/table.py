"""The figures of an evaluation as text, each with the conditions it was measured under."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from eaglepipe.evaluation.bootstrap import Estimate
from eaglepipe.evaluation.heldout_figures import HeldoutFigures
from eaglepipe.evaluation.measurement import Measurement
from eaglepipe.tables import Justify, text_table

_HELDOUT_COLUMNS: dict[str, Justify] = {
    "data": "left",
    "samples": "right",
    "slots": "right",
    "loss": "right",
    "acceptance length [95%]": "left",
    "outside draft vocabulary": "left",
}
_COLUMNS: dict[str, Justify] = {
    "drafter": "left",
    "shape": "left",
    "K": "right",
    "T": "right",
    "top-p": "right",
    "batch": "right",
    "data": "left",
    "kind": "left",
    "prompts": "right",
    "acceptance length [95%]": "left",
    "tokens/forward": "right",
    "speed": "right",
    "identical": "left",
    "rounds accepting more than 0, 1, ... guesses": "left",
}


def eval_table(
    heldout: Sequence[HeldoutFigures],
    measurements: Sequence[Measurement],
    bigram: float,
    own_text: float,
    num_depths: int,
    *,
    warning: str | None = None,
) -> str:
    """Return all figures as two tables with their notes; `warning` concerns those of real decoding."""
    lines = [*_heldout_lines(heldout, bigram, num_depths), "", *_measurement_lines(measurements, own_text)]
    return "\n".join([*lines, *([] if warning is None else [f"  WARNING: {warning}"])])


def _heldout_lines(heldout: Sequence[HeldoutFigures], bigram: float, num_depths: int) -> list[str]:
    rows = [
        (
            part.source,
            f"{part.samples:,}",
            f"{part.slots:,}",
            f"{part.loss:.3f}",
            part.acceptance_length.text(),
            f"{part.outside_vocabulary.value:.2%} of tokens, {part.mass_outside.value:.2%} of mass",
        )
        for part in heldout
    ]
    whole = heldout[0]
    conditional = [estimate.value for estimate in whole.conditional_acceptance_by_depth]
    lengths = list(accumulate(accumulate(conditional, mul), initial=1.0))[1:]  # of a chain of 1, 2, ... guesses
    return [
        f"every held-out position alike: simulated, chain, K = {num_depths}, greedy, teacher-forced",
        text_table(_HELDOUT_COLUMNS, rows, indent=2),
        f"  bigram table, all: acceptance length {bigram:.3f}",
        f"  accuracy by depth       {_percentages(whole.accuracy_by_depth)}",
        f"  accepted if all before  {_percentages(whole.conditional_acceptance_by_depth)}",
        f"  acceptance length       {' '.join(f'{length:.2f}' for length in lengths)}, for K = 1, 2, ...",
    ]


def _measurement_lines(measurements: Sequence[Measurement], own_text: float) -> list[str]:
    lines = [
        "rounds as an engine makes them: tokens a round adds",
        text_table(_COLUMNS, map(_cells, measurements), indent=2),
        f"  simulated: rounds replayed on cached text, {own_text:.1%} of it the target's greedy choice",
    ]
    for measurement in measurements:
        if measurement.first_difference is not None:
            label = measurement.method.label
            lines.append(f"  {label}: differs from the target alone on {measurement.first_difference}")
    return lines


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
        conditions.kind,
        str(measurement.prompts),
        measurement.acceptance_length.text(2),
        f"{measurement.tokens_per_forward:.2f}",
        "" if measurement.speedup is None else f"{measurement.speedup:.2f}x",
        {None: "", True: "yes", False: "NO"}[measurement.identical],
        " ".join(f"{share:.0%}" for share in measurement.acceptance_by_depth),
    )


def _percentages(estimates: Sequence[Estimate]) -> str:
    return " ".join(f"{estimate.value:.1%}" for estimate in estimates)
