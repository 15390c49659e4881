"""`eaglepipe report`: a run on one page, an HTML file that holds its plots, and the plots as PNG beside it."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.storage import caches_of
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.report.histograms import cache_figures
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_bytes
from eaglepipe.recipe.load import load_recipe
from eaglepipe.training.run.metrics import read_metrics

FOLDER, PAGE = "report", "report.html"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A plot and the sentence that says how to read it."""

    name: str
    text: str
    png: bytes


def write_report(run: Path, caches: Sequence[Path] | None = None) -> Path:
    """Write `report/report.html` and its PNG files into a run's folder; returns the page.

    Args:
        run: a folder of `eaglepipe train`; `eval.json`, where `eaglepipe eval` left one, is shown too.
        caches: where its caches are now; default: as the run's recipe says.

    Raises:
        EaglepipeError: nothing was trained there yet, or matplotlib is not installed.
        CacheError, CorruptError: a cache is missing or damaged.
    """
    metrics = list(read_metrics(run / "metrics.jsonl"))
    steps = [row for row in metrics if row["kind"] == "step"]
    if not steps:
        raise EaglepipeError(f"{run}: no step of a run is recorded there; give the folder that `eaglepipe train` wrote")
    evaluations = [row for row in metrics if row["kind"] == "evaluation"]
    evaluated = _read_json(run / "eval.json")
    sections = _sections(steps, evaluations, _baselines(evaluated), _caches(run, caches))
    for section in sections:
        publish_bytes(run / FOLDER / f"{section.name}.png", section.png)
    page = _page(run, _facts(run, steps, evaluations), sections, evaluated)
    publish_bytes(run / FOLDER / PAGE, page.encode())
    return run / FOLDER / PAGE


def _caches(run: Path, caches: Sequence[Path] | None) -> list[Path]:
    return list(caches) if caches else [share.folder for share in caches_of(load_recipe(run / "recipe.yaml"))]


def _sections(
    steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], baselines: dict[str, float], caches: list[Path]
) -> list[Section]:
    plots = _plots()
    best = best_step(evaluations)
    made = [
        ("loss", "Training loss keeps falling with a fixed cache; the held-out one says when to stop.",
         plots.loss_plot(steps, evaluations, best)),
        ("acceptance", "Tokens that a target forward yields when every draft is greedy and exact match counts, "
         "on samples never trained on. It picks the best step.",
         plots.acceptance_plot(steps, evaluations, best, baselines)),
    ]  # fmt: skip
    after = {row["step"]: row for row in evaluations}
    if best in after:
        made.append(("depth", "A draft that learned to read its own states stays flat on the right.",
                     plots.depth_plot(evaluations[0], after[best])))  # fmt: skip
    made += [
        ("speed", "Waiting for data should stay under 2%.", plots.speed_plot(steps)),
        ("cache", "What was trained from. Entropy bounds what any draft can reach.",
         plots.cache_plot(cache_figures(caches))),
    ]  # fmt: skip
    return [Section(name=name, text=text, png=_png(figure)) for name, text, figure in made]


def best_step(evaluations: Sequence[dict[str, Any]]) -> int:
    """The step of the longest acceptance after training began, the lower loss where two are equal; -1 without one."""
    after = [row for row in evaluations if row["step"] > 0]
    merits = {row["step"]: (row["simulated_acceptance_length"], -row["loss"]) for row in after}
    return max(merits, key=lambda step: merits[step], default=-1)


def _plots() -> Any:
    try:
        from eaglepipe.evaluation.report import plots
    except ModuleNotFoundError as error:
        raise EaglepipeError(f"plots need {error.name}: pip install 'eaglepipe[plots]'") from None
    return plots


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _baselines(evaluated: dict[str, Any]) -> dict[str, float]:
    value = evaluated.get("bigram_acceptance_length")
    return {} if value is None else {"bigram table": float(value)}


def _facts(run: Path, steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> list[tuple[str, str]]:
    recipe = load_recipe(run / "recipe.yaml")
    after = {row["step"]: row for row in evaluations}
    best, last = after.get(best_step(evaluations)), steps[-1]
    facts = [
        ("recipe", recipe.name),
        ("target", recipe.target.path),
        ("objective", f"{recipe.train.objective}, K = {recipe.train.depths}"),
        ("steps", f"{last['step']:,}, of {sum(row['tokens'] for row in steps) / len(steps):,.0f} tokens each"),
    ]
    if best is not None:
        facts += [
            ("best step", f"{best['step']:,}"),
            ("held out there", f"simulated acceptance length {best['simulated_acceptance_length']:.3f}, "
             f"loss {best['loss']:.3f}, {best['samples']:,} samples"),
        ]  # fmt: skip
    return facts


def _page(run: Path, facts: list[tuple[str, str]], sections: list[Section], evaluated: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts)
    figures = "".join(
        f'<figure><img alt="{section.name}" src="data:image/png;base64,{base64.b64encode(section.png).decode()}">'
        f"<figcaption>{html.escape(section.text)}</figcaption></figure>"
        for section in sections
    )
    table = str(evaluated.get("table", ""))
    measured = f"<h2>Measured by eaglepipe eval</h2><pre>{html.escape(table)}</pre>" if table else ""
    title = html.escape(f"{run.name}: eaglepipe report")
    return f"{_HEAD.format(title=title)}<h1>{title}</h1><table>{rows}</table>{measured}{figures}</html>\n"


_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}}
th{{text-align:left;padding-right:1.5rem;font-weight:600}}figure{{margin:2rem 0}}img{{max-width:100%}}
figcaption{{color:#555}}pre{{overflow-x:auto;background:#f6f6f6;padding:1rem}}</style>
"""
