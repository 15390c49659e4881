"""The demo: the main job from nothing to a trained draft, and one page of figures about it.

Each stage leaves its result on disk and is passed over when that is there, so that a stopped demo goes on.
The target is moved away before the draft is trained, to show that training does not need it.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eaglepipe.cache.storage import cache_root, declared_sections, list_caches
from eaglepipe.cache.verify import verify_cache
from eaglepipe.chat.tokenizer import load_tokenizer
from eaglepipe.demo.corpus import CorpusFiles, read_rows, write_corpus
from eaglepipe.demo.judge import Verdict, judge_draft
from eaglepipe.demo.quality import QualityReport, judge_answers
from eaglepipe.demo.size import STANDARD, DemoSize, claim_folder
from eaglepipe.demo.summary import summary_text
from eaglepipe.demo.target import TargetReport, TargetStep, train_target
from eaglepipe.demo.tokenizer import train_tokenizer
from eaglepipe.errors import ConfigError, CorruptError
from eaglepipe.evaluation.report.page import write_report
from eaglepipe.families import DEFAULT_FAMILY, FAMILIES
from eaglepipe.files.publish import publish_bytes, publish_json, published_folder
from eaglepipe.generation.regenerate import RegenerateResult, run_regenerate
from eaglepipe.precompute.stage import PrecomputeResult, run_precompute
from eaglepipe.progress import ProgressLine
from eaglepipe.recipe.load import dump_recipe, load_recipe, parse_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.resources import shipped_recipes
from eaglepipe.train import TrainResult, run_training

SEED = 0
Report = Callable[[str], None]


class _Stages:
    """Seconds by stage, each announced when it begins."""

    def __init__(self, report: Report) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        self._report(f"\n== {name}: {what}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def run_demo(
    folder: Path, *, size: DemoSize = STANDARD, objective: str = DEFAULT_FAMILY.name, report: Report = print
) -> dict[str, Any]:
    """Run every stage that is not done yet below `folder`; returns what is in its summary.

    Args:
        folder: everything is written here, the caches too.
        size: how much of everything is made; with `FAST` the draft is no measure of anything.
        objective: what the draft is trained with; each has a run and a summary of its own beside those of the others.
        report: takes the lines of the log and the summary.

    Raises:
        ConfigError: as `demo_recipe` says.
    """
    stages = _Stages(report)
    recipe = demo_recipe(folder, size=size, objective=objective)
    target, away = folder / "target", folder / "target.moved-away"
    if away.exists() and not target.exists() and not _has_cache(recipe):
        away.rename(target)  # another objective's run moved it, and this one's cache is still to be made
    regenerated = folder / "data" / "regenerated.jsonl"
    if not away.exists():
        with stages.stage("corpus", "questions and answers about Unicode characters and the calendar"):
            data = folder / "data"
            corpus = write_corpus(data, seed=SEED, train_rows=size.train_rows, prompt_rows=size.prompt_rows)
            report(f"{corpus.num_train_rows:,} conversations for the target, {corpus.num_prompt_rows:,} held back")
        with stages.stage("target", "a byte-level BPE tokenizer and a Llama trained on them"):
            _make_target(corpus, target, size, report)
        with stages.stage("regenerate", "the target answers the held-back questions itself"):
            answered = run_regenerate(recipe, report=report)
            tokenize = load_tokenizer(str(target)).tokenize
            report(_answers_line(answered, judge_answers(regenerated, read_rows(corpus.prompts), tokenize)))
    with stages.stage("precompute", "the target runs once over its own answers"):
        cache = run_precompute(recipe, report=report)
        verified = verify_cache(Path(cache.folder), full=True)
        report(verified.verdict())
        if not verified.ok:
            raise CorruptError("\n".join(verified.problems))
    if target.exists():
        target.rename(away)
        report(f"{target} is now {away.name}: nothing below can read it")
    with stages.stage("train", "a draft, from the cache alone"):
        trained = run_training(recipe, [Path(cache.folder)])
    run = Path(trained.run_folder)
    with stages.stage("eval", "draft and target decode held-out prompts together; simpler drafters do the same"):
        verdict = judge_draft(run, Path(cache.folder), away)
    with stages.stage("report", "plots of the run and its cache"):
        page = _write_report(run, Path(cache.folder), report)
    summary = _summary(cache, trained, verdict, stages.seconds)
    file = folder / f"summary{_suffix(objective)}.json"
    publish_json(file, summary)
    report(summary_text(summary, file, page))
    return summary


def demo_recipe(folder: Path, *, size: DemoSize = STANDARD, objective: str = DEFAULT_FAMILY.name) -> Recipe:
    """The recipe that ships, with its paths below `folder` and another objective if asked for; also `folder/demo.yaml`.

    Raises:
        ConfigError: the demo does not know the objective, or `folder` has a demo of another size.
    """
    family = FAMILIES.get(objective)
    if family is None:
        raise ConfigError(f"the demo has no objective {objective!r}; it knows {', '.join(FAMILIES)}")
    claim_folder(folder, size)
    raw = load_recipe(shipped_recipes()["demo"])
    moved = raw.model_dump_json().replace("runs/demo", folder.as_posix())
    recipe = parse_recipe(json.loads(moved))
    file = folder / f"demo{_suffix(objective)}.yaml"
    publish_json(file, recipe.model_dump(mode="json"))
    overrides = [f"cache.root={(folder / 'caches').as_posix()}", f"train.objective={objective}"]
    overrides += [f"train.output_dir={(folder / f'train{_suffix(objective)}').as_posix()}", *size.settings]
    overrides += [f"train.{family.depths_setting}={size.depths or raw.train.depths}", *family.unmet_needs({})]
    recipe = load_recipe(file, overrides)
    publish_bytes(file, dump_recipe(recipe).encode())  # whole, so that the next draft can be trained from it
    return recipe


def _has_cache(recipe: Recipe) -> bool:
    complete = (found.plan for found in list_caches(cache_root(recipe)) if found.manifest is not None)
    return any(plan.declared == declared_sections(recipe) for plan in complete)


def _suffix(objective: str) -> str:
    return "" if objective == DEFAULT_FAMILY.name else f"-{objective}"


def _make_target(corpus: CorpusFiles, folder: Path, size: DemoSize, report: Report) -> None:
    if (folder / "config.json").exists():
        report(f"{folder}: already trained")
        return
    tokenizer = train_tokenizer(corpus.train)
    with (
        published_folder(folder) as unfinished,
        ProgressLine("target", total=size.training.max_steps, unit="step") as progress,
    ):

        def show(step: TargetStep) -> None:
            progress.update(1, f"loss {step.loss:.3f}")

        made = train_target(corpus.train, tokenizer, unfinished, training=size.training, on_step=show)
    report(_target_line(made))


def _target_line(made: TargetReport) -> str:
    return (
        f"{made.num_parameters / 1e6:.1f} M parameters, {made.num_steps} steps, {made.num_tokens:,} tokens "
        f"in {made.seconds:.0f} s, {made.loss:.2f} nats an answer token"
    )


def _answers_line(result: RegenerateResult, quality: QualityReport) -> str:
    return (
        f"{result.success / max(1, result.input):.1%} of the answers end by themselves; "
        f"of {quality.num_answers:,} read, {quality.distinct_share:.0%} are distinct, {quality.looping_share:.1%} loop "
        f"and they hold {quality.shared_words:.0%} of the words of the true ones"
    )


def _write_report(run: Path, cache: Path, report: Report) -> Path | None:
    """The page, or None where plots cannot be drawn, which is no reason to lose a finished demo."""
    if find_spec("matplotlib") is None:
        report("matplotlib is not installed, so no plots: pip install 'eaglepipe[plots]'")
        return None
    return write_report(run, [cache])


def _summary(
    cache: PrecomputeResult, trained: TrainResult, verdict: Verdict, seconds_by_stage: dict[str, float]
) -> dict[str, Any]:
    return {
        "samples": cache.samples,
        "tokens": cache.tokens,
        "supervised_tokens": cache.supervised_tokens,
        "bytes_per_token": round(cache.bytes / cache.tokens, 1),
        "cache_bytes": cache.bytes,
        "cache": cache.folder,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "heldout_samples": trained.heldout_samples,
        "heldout_loss_start": trained.heldout_loss_start,
        "heldout_loss_end": trained.heldout_loss_end,
        "accuracy_by_depth": trained.accuracy_by_depth,
        "conditional_acceptance_by_depth": trained.conditional_acceptance_by_depth,
        "simulated_acceptance_length_start": trained.simulated_acceptance_length_start,
        "simulated_acceptance_length_end": trained.simulated_acceptance_length_end,
        **verdict.to_json(),
        "ttt_steps": len(trained.accuracy_by_depth or ()),
        "train_tokens_per_s": round(trained.tokens_per_s, 1),
        "data_wait_share": round(trained.data_wait_share, 4),
        "draft": trained.draft_folder,
        "seconds_by_stage": seconds_by_stage,
    }
