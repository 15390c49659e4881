"""Quality of the demo's draft: speculative decoding with the target, beside what simpler drafters reach."""

from pathlib import Path
from typing import Any

from eaglepipe.evaluation.eval_report import EvalReport
from eaglepipe.evaluation.evaluate import evaluate_run
from eaglepipe.evaluation.figures.measurement import Measurement
from eaglepipe.evaluation.options import EvalOptions

DEPTH, PROMPTS, NEW_TOKENS = 5, 16, 128
BASELINES = ("none", "bigram table", "prompt lookup")


def measure_draft(run: Path, cache: Path, target: Path) -> dict[str, Any]:
    """Decode held-out prompts with a finished run's draft and its target, in a greedy chain, one at a time.

    Leaves `eval.json` in the run's folder. Acceptance lengths are tokens that a round adds; `replayed_*` are the same
    rounds simulated on the cached answers, and `bigram_acceptance_length` is counted as the held-out figures of
    training are. `greedy_identical` is True, or names the first difference to the target alone.
    """
    options = EvalOptions(
        caches=(cache,), target=target, depths=(DEPTH,), num_prompts=PROMPTS, max_new_tokens=NEW_TOKENS
    )
    report = evaluate_run(run, options)
    baselines = {figure.method.drafter: figure for figure in report.measurements if figure.conditions.kind == "real"}
    draft = _draft_figure(report, "real")
    return {
        "real_depth": DEPTH,
        "real_prompts": draft.prompts,
        "real_acceptance_length": draft.acceptance_length.value,
        "replayed_acceptance_length": _draft_figure(report, "simulated").acceptance_length.value,
        "real_speedup": draft.speedup,
        "greedy_identical": True if draft.identical else str(draft.first_difference),
        "prompt_lookup_acceptance_length": baselines["prompt lookup"].acceptance_length.value,
        "bigram_real_acceptance_length": baselines["bigram table"].acceptance_length.value,
        "bigram_acceptance_length": report.bigram_acceptance_length,
    }


def _draft_figure(report: EvalReport, kind: str) -> Measurement:
    return next(f for f in report.measurements if f.conditions.kind == kind and f.method.drafter not in BASELINES)
