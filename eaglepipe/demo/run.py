"""The demo: the main job from nothing to a trained draft, and one page of figures about it.

Each stage leaves its result on disk and is passed over when that is there, so that a stopped demo goes on.
The target is moved away before the draft is trained, to show that training does not need it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eaglepipe.cache.storage import cache_root, declared_sections, list_caches
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.demo.answer_quality import AnswerQuality, measure_answers
from eaglepipe.demo.corpus import CorpusFiles, read_rows, write_corpus
from eaglepipe.demo.demo_recipe import demo_recipe, name_suffix
from eaglepipe.demo.draft_quality import measure_draft
from eaglepipe.demo.size import STANDARD, DemoSize
from eaglepipe.demo.summary import summarise, summary_page
from eaglepipe.demo.target import train_target
from eaglepipe.demo.tokenizer import train_tokenizer
from eaglepipe.errors import CorruptError
from eaglepipe.evaluation.report.page import write_report
from eaglepipe.families import DEFAULT_FAMILY
from eaglepipe.files.publish import publish_json, published_folder
from eaglepipe.generation.regenerate import RegenerateResult, run_regenerate
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.progress import ProgressLine
from eaglepipe.recipe.tree import Recipe
from eaglepipe.train import run_training

SEED = 0
Report = Callable[[str], None]


def run_demo(
    folder: Path, *, size: DemoSize = STANDARD, objective: str = DEFAULT_FAMILY.name, report: Report = print
) -> dict[str, Any]:
    """Run every stage that is not done yet below `folder`, and return the summary.

    Args:
        folder: everything is written here, the caches too.
        size: how much of everything is made; with `FAST` the draft is no measure of anything.
        objective: family of the draft; each has a run and a summary of its own beside those of the others.
        report: takes the lines of the log and the summary.

    Raises:
        ConfigError: there is no such objective, or `folder` has a demo of another size.
        CorruptError: the cache does not hold what its manifest lists.
    """
    seconds: dict[str, float] = {}
    stage = partial(_timed_stage, seconds, report)
    recipe = demo_recipe(folder, size=size, objective=objective)
    target, away = folder / "target", folder / "target.moved-away"
    if away.exists() and not target.exists() and not _has_cache(recipe):
        away.rename(target)  # another objective's run moved it, and this one's cache is still to be made
    regenerated = folder / "data" / "regenerated.jsonl"
    if not away.exists():
        with stage("corpus", "questions and answers about Unicode characters and the calendar"):
            data = folder / "data"
            corpus = write_corpus(data, seed=SEED, train_rows=size.train_rows, prompt_rows=size.prompt_rows)
            report(f"{corpus.num_train_rows:,} conversations for the target, {corpus.num_prompt_rows:,} held back")
        with stage("target", "a byte-level BPE tokenizer and a Llama trained on them"):
            _make_target(corpus, target, size, report)
        with stage("regenerate", "the target answers the held-back questions itself"):
            answered = run_regenerate(recipe, report=report)
            tokenize = load_tokenizer(target).tokenize
            report(_answers_line(answered, measure_answers(regenerated, read_rows(corpus.prompts), tokenize)))
    with stage("precompute", "the target runs once over its own answers"):
        cache = run_precompute(recipe, report=report)
        verified = verify_cache(Path(cache.folder), full=True)
        report(verified.summary())
        if not verified.ok:
            raise CorruptError("\n".join(verified.problems))
    if target.exists():
        target.rename(away)
        report(f"{target} is now {away.name}: nothing below can read it")
    with stage("train", "a draft, from the cache alone"):
        trained = run_training(recipe, [Path(cache.folder)])
    run = Path(trained.run_folder)
    with stage("eval", "draft and target decode held-out prompts together; simpler drafters do the same"):
        draft_figures = measure_draft(run, Path(cache.folder), away)
    with stage("report", "plots of the run and its cache"):
        plots = _write_report(run, Path(cache.folder), report)
    summary = summarise(cache, trained, draft_figures, seconds)
    file = folder / f"summary{name_suffix(objective)}.json"
    publish_json(file, summary)
    report(summary_page(summary, file, plots))
    return summary


@contextmanager
def _timed_stage(seconds: dict[str, float], report: Report, name: str, purpose: str) -> Iterator[None]:
    """Announce a stage, and enter its wall time into `seconds`."""
    report(f"\n== {name}: {purpose}")
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)


def _has_cache(recipe: Recipe) -> bool:
    complete = (found.plan for found in list_caches(cache_root(recipe)) if found.manifest is not None)
    return any(plan.declared == declared_sections(recipe) for plan in complete)


def _make_target(corpus: CorpusFiles, folder: Path, size: DemoSize, report: Report) -> None:
    if (folder / "config.json").exists():
        report(f"{folder}: already trained")
        return
    tokenizer = train_tokenizer(corpus.train)
    with (
        published_folder(folder) as unfinished,
        ProgressLine("target", total=size.training.max_steps, unit="step") as progress,
    ):

        def show(loss: float) -> None:
            progress.update(1, f"loss {loss:.3f}")

        target = train_target(corpus.train, tokenizer, unfinished, training=size.training, on_step=show)
    if target.stopped_by_time:
        report(
            f"stopped at its limit of {size.training.max_seconds:.0f} s, after {target.num_steps} of "
            f"{size.training.max_steps} steps: figures below depend on the speed of this machine"
        )
    report(
        f"{target.num_parameters / 1e6:.1f} M parameters, {target.num_steps} steps, {target.num_tokens:,} tokens "
        f"in {target.seconds:.0f} s, {target.loss:.2f} nats an answer token"
    )


def _answers_line(result: RegenerateResult, quality: AnswerQuality) -> str:
    return (
        f"{result.success / max(1, result.input):.1%} of the answers end by themselves; "
        f"of {quality.num_answers:,} read, {quality.distinct_share:.0%} are distinct, {quality.looping_share:.1%} loop "
        f"and they hold {quality.shared_words:.0%} of the words of the true ones"
    )


def _write_report(run: Path, cache: Path, report: Report) -> Path | None:
    """Return the page, or None if plots cannot be drawn, which is no reason to lose a finished demo."""
    if find_spec("matplotlib") is None:
        report("matplotlib is not installed, so no plots: pip install 'eaglepipe[plots]'")
        return None
    return write_report(run, [cache])
