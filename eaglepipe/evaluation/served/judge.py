"""Judges a draft by an engine that serves it: its figures, the gap to real decoding, and the gap's likely causes."""

from collections.abc import Sequence
from dataclasses import replace

from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.figures.measured_sets import Measured
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.evaluation.options import EvalOptions, Report
from eaglepipe.evaluation.prompts import PromptSet
from eaglepipe.evaluation.real_decoding import OpenTarget
from eaglepipe.evaluation.served.causes import likely_causes, with_causes
from eaglepipe.evaluation.served.gap import Gap, compare, pair
from eaglepipe.evaluation.served.served import measure_served, served_folder


def judge_engine(
    run: FinishedRun,
    target: OpenTarget,
    sets: Sequence[PromptSet],
    real: Sequence[Measured],
    *,
    options: EvalOptions,
    report: Report,
) -> tuple[list[Measured], list[Gap]]:
    """Serve the draft in vLLM; return its figures and the gap to each real figure of the same method and prompts.

    Raises:
        DraftError: vLLM does not serve this draft.
        EaglepipeError, ConfigError, ResourceError: the engine is missing or fails; with what is wrong with the folder.
    """
    assert options.engine is not None
    boundaries = tuple(run.source.spec.aux_layer_ids) if run.recipe.train.family.reads_aux else None
    with served_folder(run, options.engine, target) as (folder, own):
        try:
            served = measure_served(run, target, folder, sets, options=options, report=report)
        except EaglepipeError as error:
            raise with_causes(error, folder, own, boundaries) from None
        gaps = [compare(*both, seed=options.seed) for both in pair(served, real)]
        judged = [
            replace(gap, causes=likely_causes(gap, folder, own, boundaries)) if gap.is_beyond_noise else gap
            for gap in gaps
        ]
    return served, judged
