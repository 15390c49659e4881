"""`eaglepipe report`: a run on one page, an HTML file that embeds its plots, and the plots as PNG beside it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.storage import caches_of
from eaglepipe.errors import CorruptError, EaglepipeError
from eaglepipe.evaluation.report.cache_statistics import cache_statistics
from eaglepipe.files.digests import check_digests
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import publish_bytes
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.training.run.checkpoint import trained_cache
from eaglepipe.training.run.metrics import read_metrics
from eaglepipe.vocab import DraftVocab

FOLDER, PAGE, TEMPLATE = "report", "report.html", "page.html.jinja"

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A PNG and the sentence on how to read it."""

    name: str
    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


def write_report(run: Path, caches: Sequence[Path] | None = None) -> Path:
    """Write `report/report.html` and its PNG files into a run's folder; return the page's path.

    The page has the table of `eval.json` if there is one. The caches are by default those of the run's recipe.

    Raises:
        EaglepipeError: nothing was trained there yet, or matplotlib is not installed.
        CacheError, CorruptError: a cache is missing or damaged, or the run's draft is not the one that was published.
    """
    check_digests(run / "draft")
    metrics = list(read_metrics(run / "metrics.jsonl"))
    if not (steps := [row for row in metrics if row["kind"] == "step"]):
        raise EaglepipeError(f"{run}: no step of a run is recorded there; give the folder that `eaglepipe train` wrote")
    evaluations = [row for row in metrics if row["kind"] == "evaluation"]
    evaluated = read_evaluation(run / "eval.json")
    recipe = load_recipe(run / "recipe.yaml")
    trained_from = trained_cache(run / "checkpoints")
    folders = list(caches) if caches else [share.folder for share in caches_of(recipe, identity=trained_from)]
    plots = _draw_plots(steps, evaluations, evaluated.bigram_acceptance_length, folders)
    for plot in plots:
        publish_bytes(run / FOLDER / f"{plot.name}.png", plot.png)
    loader = PackageLoader("eaglepipe.evaluation.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(TEMPLATE).render(
        run=run.name,
        facts=_facts(recipe, Cache.open(folders[0]).vocab, steps, evaluations),
        eval_table=evaluated.table,
        plots=plots,
    )
    publish_bytes(run / FOLDER / PAGE, page.encode())
    return run / FOLDER / PAGE


class Evaluated(BaseModel):
    """The part of `eval.json` that a page shows."""

    model_config = ConfigDict(strict=True, frozen=True)

    bigram_acceptance_length: Annotated[float, Field(ge=0, le=1e300)] | None = None
    table: str | None = None


def read_evaluation(path: Path) -> Evaluated:
    """Read a run's `eval.json`, if it is there.

    Raises:
        CorruptError: it is not what `eaglepipe eval` writes.
    """
    if not path.exists():
        return Evaluated()
    try:
        return Evaluated.model_validate(read_json_object(path))
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        raise CorruptError(f"{path}: {field} is not what `eaglepipe eval` writes; run that again") from None


def best_step(evaluations: Rows) -> int:
    """Return the step of the longest acceptance after training began, with the lower loss on a tie; -1 if none."""
    measured = [row for row in evaluations if None not in (row["simulated_acceptance_length"], row["loss"])]
    after = [row for row in measured if row["step"] > 0]
    merits = {row["step"]: (row["simulated_acceptance_length"], -row["loss"]) for row in after}
    return max(merits, key=lambda step: merits[step], default=-1)


def _draw_plots(steps: Rows, evaluations: Rows, bigram: float | None, caches: Sequence[Path]) -> list[Plot]:
    try:
        from eaglepipe.evaluation.report import plots
    except ModuleNotFoundError as error:
        raise EaglepipeError(f"plots need {error.name}: pip install 'eaglepipe[plots]'") from None
    best = best_step(evaluations)
    by_step = {row["step"]: row for row in evaluations}
    drawn = [
        ("loss", "Training loss keeps falling with a fixed cache; the held-out loss shows when to stop.",
         plots.loss_plot(steps, evaluations, best)),
        ("acceptance", "Tokens that a target forward yields if every draft is greedy and must match exactly, "
         "on samples never trained on. It picks the best step.",
         plots.acceptance_plot(steps, evaluations, best, {} if bigram is None else {"bigram table": bigram})),
    ]  # fmt: skip
    if best in by_step and len(evaluations[0]["acceptance_by_depth"]) == len(by_step[best]["acceptance_by_depth"]):
        drawn.append(("depth", "A draft that learned to read its own states stays flat on the right.",
                      plots.depth_plot(evaluations[0], by_step[best])))  # fmt: skip
    drawn += [
        ("speed", "Waiting for data should stay under 2%.", plots.speed_plot(steps)),
        ("cache", "The data trained from. Entropy bounds what any draft can reach.",
         plots.cache_plot(cache_statistics(caches))),
    ]  # fmt: skip
    return [Plot(name=name, caption=caption, png=_png(figure)) for name, caption, figure in drawn]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _facts(recipe: Recipe, vocab: DraftVocab, steps: Rows, evaluations: Rows) -> list[tuple[str, str]]:
    best = {row["step"]: row for row in evaluations}.get(best_step(evaluations))
    facts = [
        ("recipe", recipe.name),
        ("target", recipe.target.path),
        ("objective", f"{recipe.train.objective}, K = {recipe.train.depths}"),
        ("steps", f"{steps[-1]['step']:,}, of {sum(row['tokens'] for row in steps) / len(steps):,.0f} tokens each"),
    ]
    if vocab.size < vocab.target_size:
        origin = "chosen from all samples of the cache, held-out ones included"
        facts.append(("draft vocabulary", f"{vocab.size:,} of {vocab.target_size:,} tokens, {origin}"))
    if best is not None:
        facts += [
            ("best step", f"{best['step']:,}"),
            ("held out there", f"simulated acceptance length {best['simulated_acceptance_length']:.3f}, "
             f"loss {best['loss']:.3f}, {best['samples']:,} samples"),
        ]  # fmt: skip
    return facts
