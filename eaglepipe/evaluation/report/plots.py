"""The plots of a report: one function a figure, from rows of metrics.jsonl and statistics of the cache.

Figures are made without pyplot, which keeps global state and may ask for a display.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from eaglepipe.evaluation.report.cache_statistics import CacheStatistics

Rows = Sequence[dict[str, Any]]

TRAIN, HELDOUT, REFERENCE, GRID = "#4477aa", "#cc5522", "#a0a0a0", "#dddddd"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
_WINDOWS = 25  # pieces of a run over which the training curve is averaged


def loss_plot(steps: Rows, evaluations: Rows, best_step: int) -> Figure:
    """Plot the loss over optimizer steps; the training curve faint as logged and firm as a moving mean."""
    figure, axes = _single_axes("Loss", "optimizer step", "soft cross-entropy, nats a token")
    _curves(axes, steps, evaluations, "loss", best_step)
    return figure


def acceptance_plot(steps: Rows, evaluations: Rows, best_step: int, baselines: dict[str, float]) -> Figure:
    """Plot the simulated acceptance length over optimizer steps, beside that of simpler drafters."""
    figure, axes = _single_axes("Simulated acceptance length", "optimizer step", "tokens a target forward")
    _curves(axes, steps, evaluations, "simulated_acceptance_length", best_step)
    for label, value in baselines.items():
        axes.axhline(value, color="#555555", linewidth=1, linestyle=":")
        axes.annotate(f"{label} {value:.2f}", (0.01, value), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", fontsize=8, color="#555555")  # fmt: skip
    axes.set_ylim(bottom=min(1.0, *axes.get_ylim()))
    return figure


def depth_plot(first: dict[str, Any], best: dict[str, Any]) -> Figure:
    """Plot the share of drafts that the target accepts at each depth, before training and at the best step."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, name, title in (
        (left, "acceptance_by_depth", "Accepted: this draft and all before it"),
        (right, "conditional_acceptance_by_depth", "Accepted if all before it were"),
    ):
        _label(axes, title, "draft token", "")
        depths = np.arange(1, len(best[name]) + 1)
        axes.bar(depths, best[name], width=0.62, color=HELDOUT, label=f"step {best['step']}")
        axes.plot(depths, first[name], color=REFERENCE, marker="o", markersize=4, label="before training")
        for depth, share in zip(depths, best[name], strict=True):
            axes.annotate(f"{share:.0%}", (depth, share), (0, 2), textcoords="offset points", ha="center", fontsize=8)
        axes.set_xticks(depths)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(0, 1.35)  # bars of 100% stay below the legend
        axes.set_yticks(np.linspace(0, 1, 6))
    left.set_ylabel("share of held-out chains")
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def speed_plot(steps: Rows) -> Figure:
    """Plot the training speed, the share of time spent waiting for data, and the padding."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _label(left, "Training speed", "optimizer step", "tokens a second")
    _label(right, "Waiting for data, padding", "optimizer step", "share")
    left.plot(*_column(steps, "tokens_per_s"), color=TRAIN)
    left.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    left.set_ylim(0, 1.15 * max(1.0, *_column(steps, "tokens_per_s")[1]))
    right.plot(*_column(steps, "data_wait_share"), color=TRAIN, label="waiting, of the time")
    right.plot(*_column(steps, "padding"), color=HELDOUT, linestyle="--", label="padding, of the slots")
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.set_ylim(0, max(0.05, 1.3 * right.get_ylim()[1]))
    right.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def cache_plot(statistics: CacheStatistics) -> Figure:
    """Plot a cache's samples and supervised tokens as three histograms."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    length, entropy, mass = figure.subplots(1, 3)
    _histogram(length, statistics.num_tokens, "Length of a sample", "tokens", "samples")
    _histogram(entropy, statistics.entropy, "How unsure the target is", "entropy, nats", "supervised tokens")
    coverage = f"target's mass it covers (and {statistics.covered:.1%} of its top-1)"
    _histogram(mass, statistics.draft_mass, "The draft vocabulary", coverage, "supervised tokens", number="{:.2%}")
    mass.set_yscale("log")
    mass.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    mass.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def _curves(axes: Axes, steps: Rows, evaluations: Rows, name: str, best_step: int) -> None:
    logged_steps, values = _column(steps, name)
    axes.plot(logged_steps, values, color=TRAIN, alpha=0.25, linewidth=1)
    window = max(1, len(values) // _WINDOWS)
    if len(values) >= window:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        middles = np.convolve(logged_steps, np.ones(window) / window, mode="valid")
        label = "training" if window == 1 else f"training, mean of {window} steps"
        axes.plot(middles, smooth, color=TRAIN, label=label)
    heldout_steps, heldout = _column(evaluations, name)
    axes.plot(heldout_steps, heldout, color=HELDOUT, marker="o", markersize=5, label="held out")
    if (best := dict(zip(heldout_steps, heldout, strict=True)).get(best_step)) is not None:
        axes.annotate(f"best: {best:.2f}", (best_step, best), (-6, 8), textcoords="offset points", ha="right",
                      color=HELDOUT, fontsize=9, fontweight="bold", bbox=LABEL_BOX)  # fmt: skip
    axes.legend(frameon=False, fontsize=8)


def _column(rows: Iterable[dict[str, Any]], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    table = np.array(points, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _histogram(axes: Axes, values: NDArray[Any], title: str, x: str, y: str, *, number: str = "{:,.4g}") -> None:
    _label(axes, title, x, y)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.hist(values, bins=40, color=TRAIN)
    if len(values):
        median = float(np.median(values))
        axes.axvline(median, color=HELDOUT, linewidth=1)
        side = -1 if median > np.mean(axes.get_xlim()) else 1
        axes.annotate(f"median {number.format(median)}", (median, 0.98), (4 * side, 0), fontsize=8, color=HELDOUT,
                      xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                      ha="left" if side > 0 else "right", bbox=LABEL_BOX)  # fmt: skip


def _single_axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    _label(axes, title, x, y)
    return figure, axes


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=x != "entropy, nats"))
