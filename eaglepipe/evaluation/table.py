"""The figures of an evaluation as a person reads them, each with what it was measured under."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from eaglepipe.evaluation.bootstrap import Estimate
from eaglepipe.evaluation.figures import Figure
from eaglepipe.evaluation.heldout_counts import HeldoutFigures

_COLUMNS = ("drafter", "shape", "K", "T", "top-p", "batch", "data", "kind", "prompts", "acceptance length [95%]",
            "tokens/forward", "speed", "identical", "rounds accepting more than 0, 1, ... guesses")  # fmt: skip


def eval_table(
    heldout: Sequence[HeldoutFigures],
    figures: Sequence[Figure],
    bigram: float,
    own_text: float,
    num_depths: int,
    *,
    warning: str | None = None,
) -> str:
    """All figures, in two tables and their notes; `warning` is what a reader of the real ones must know."""
    lines = [*_heldout_lines(heldout, bigram, num_depths), "", *_figure_lines(figures, own_text)]
    return "\n".join([*lines, *([] if warning is None else [f"  WARNING: {warning}"])])


def _heldout_lines(heldout: Sequence[HeldoutFigures], bigram: float, num_depths: int) -> list[str]:
    lines = [f"every held-out position alike: simulated, chain, K = {num_depths}, greedy, teacher-forced"]
    rows = [("data", "samples", "slots", "loss", "acceptance length [95%]", "outside draft vocabulary")]
    rows += [
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
    lines += _aligned(rows)
    lines.append(f"  bigram table, all: acceptance length {bigram:.3f}")
    for part in heldout[:1]:
        lines.append(f"  accuracy by depth       {_shares(part.accuracy_by_depth)}")
        lines.append(f"  accepted if all before  {_shares(part.conditional_acceptance_by_depth)}")
        lines.append(f"  acceptance length       {_lengths(part)}, for K = 1, 2, ...")
    return lines


def _figure_lines(figures: Sequence[Figure], own_text: float) -> list[str]:
    lines = ["rounds as an engine makes them: tokens a round adds"]
    lines += _aligned([_COLUMNS, *(_cells(figure) for figure in figures)])
    if any(figure.conditions.kind == "simulated" for figure in figures):
        lines.append(f"  simulated: rounds replayed on cached text, {own_text:.1%} of it the target's greedy choice")
    for figure in figures:
        if figure.first_difference is not None:
            lines.append(f"  {figure.method.label}: differs from the target alone on {figure.first_difference}")
    return lines


def _cells(figure: Figure) -> tuple[str, ...]:
    method, under = figure.method, figure.conditions
    shape = f"tree of {method.size}" if method.shape == "tree" else method.shape
    return (
        method.drafter,
        "" if method.shape == "none" else shape,
        str(method.depth or ""),
        f"{under.rule.temperature:g}",
        f"{under.rule.top_p:g}",
        str(under.batch_size),
        under.data,
        under.kind,
        str(figure.prompts),
        figure.acceptance_length.text(2),
        f"{figure.tokens_per_forward:.2f}",
        "" if figure.speedup is None else f"{figure.speedup:.2f}x",
        "" if figure.identical is None else ("yes" if figure.identical else "NO"),
        " ".join(f"{share:.0%}" for share in figure.acceptance_by_depth),
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _lengths(part: HeldoutFigures) -> str:
    """The acceptance length of a chain of 1, 2, ... guesses."""
    conditional = [estimate.value for estimate in part.conditional_acceptance_by_depth]
    lengths = list(accumulate(accumulate(conditional, mul), initial=1.0))
    return " ".join(f"{length:.2f}" for length in lengths[1:])


def _shares(estimates: Sequence[Estimate]) -> str:
    return " ".join(f"{estimate.value:.1%}" for estimate in estimates)
