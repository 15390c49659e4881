"""The demo's verdict on its draft: real speculative decoding with the target, and what simpler drafters reach."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eaglepipe.evaluation.eval_report import EvalReport
from eaglepipe.evaluation.evaluate import evaluate_run
from eaglepipe.evaluation.measurement import Measurement
from eaglepipe.evaluation.options import EvalOptions

DEPTH, PROMPTS, NEW_TOKENS = 5, 16, 128
BASELINES = ("none", "bigram table", "prompt lookup")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A greedy chain of `real_depth` guesses on held-out prompts, one at a time; lengths are tokens a round adds."""

    real_depth: int
    real_prompts: int
    real_acceptance_length: float
    replayed_acceptance_length: float  # the same rounds simulated on the cached answers, from the cache alone
    real_speedup: float | None  # against the target alone, on the same path
    greedy_identical: bool | str  # to the target alone, token for token; else the first difference
    prompt_lookup_acceptance_length: float
    bigram_real_acceptance_length: float
    bigram_acceptance_length: float  # simulated, counted as the held-out figures of training are

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge_draft(run: Path, cache: Path, target: Path) -> Verdict:
    """Measure the draft of a finished run with its target; leaves `eval.json` in the run's folder."""
    options = EvalOptions(
        caches=(cache,), target=target, depths=(DEPTH,), num_prompts=PROMPTS, max_new_tokens=NEW_TOKENS
    )
    report = evaluate_run(run, options)
    real = {figure.method.drafter: figure for figure in report.measurements if figure.conditions.kind == "real"}
    draft = _of_the_draft(report, "real")
    return Verdict(
        real_depth=DEPTH,
        real_prompts=draft.prompts,
        real_acceptance_length=draft.acceptance_length.value,
        replayed_acceptance_length=_of_the_draft(report, "simulated").acceptance_length.value,
        real_speedup=draft.speedup,
        greedy_identical=True if draft.identical else str(draft.first_difference),
        prompt_lookup_acceptance_length=real["prompt lookup"].acceptance_length.value,
        bigram_real_acceptance_length=real["bigram table"].acceptance_length.value,
        bigram_acceptance_length=report.bigram_acceptance_length,
    )


def _of_the_draft(report: EvalReport, kind: str) -> Measurement:
    return next(f for f in report.measurements if f.conditions.kind == kind and f.method.drafter not in BASELINES)
