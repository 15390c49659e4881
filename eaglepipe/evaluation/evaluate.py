"""`eaglepipe eval`: measure the draft of a run, simulated from its cache and, if a target is given, by decoding."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.text_drafters import bigram_drafter, lookup_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.evaluation.bigram import Ints, bigram_acceptance_length, bigram_table
from eaglepipe.evaluation.drafting import chain_drafter, tree_drafter
from eaglepipe.evaluation.finished_run import FinishedRun, open_run
from eaglepipe.evaluation.heldout_figures import HeldoutFigures, heldout_figures
from eaglepipe.evaluation.measurement import Measurement
from eaglepipe.evaluation.options import GREEDY, EvalOptions, Report
from eaglepipe.evaluation.prompts import cached_turns
from eaglepipe.evaluation.real_decoding import measure_real, open_target
from eaglepipe.evaluation.replay import measure_replayed, own_text_share
from eaglepipe.evaluation.table import eval_table
from eaglepipe.evaluation.target_match import TargetMatch
from eaglepipe.files.publish import publish_json
from eaglepipe.training.objectives.interface import make_objective
from eaglepipe.training.run.distributed import join_world


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """All figures of an evaluation, as `eval.json` in the run's folder holds them."""

    run: str
    heldout_depths: int  # K of the held-out figures: the depths that the draft was trained for
    heldout: tuple[HeldoutFigures, ...]
    bigram_acceptance_length: float  # counted like the held-out figures: a chain from every position
    own_text_share: float  # of the replayed text, the share that is the target's greedy choice
    measurements: tuple[Measurement, ...]
    target: TargetMatch

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "heldout_depths": self.heldout_depths,
            "heldout": [asdict(figures) for figures in self.heldout],
            "bigram_acceptance_length": self.bigram_acceptance_length,
            "own_text_share": self.own_text_share,
            "target_matches": self.target.matches,
            "figures": [measurement.to_json() for measurement in self.measurements],
            "table": self.table(),
        }

    def table(self) -> str:
        return eval_table(
            self.heldout,
            self.measurements,
            self.bigram_acceptance_length,
            self.own_text_share,
            self.heldout_depths,
            warning=self.target.warning,
        )


def evaluate_run(folder: Path, options: EvalOptions, report: Report = lambda _: None) -> EvalReport:
    """Measure a run's draft and leave `eval.json` in its folder.

    Raises:
        EaglepipeError: run, caches or target are missing or do not fit together.
    """
    run = open_run(folder, options.caches, max_samples=options.num_samples)
    num_depths = len(make_objective(run.recipe.train.evaluated).loss_weights)
    with join_world(options.device) as world:
        run.draft.to(world.device)
        trees = [tree_drafter(run, shape) for shape in options.trees]
        # The target is opened before the minutes that reading the cache takes: it may not fit the run.
        target = None if options.target is None else open_target(run, options, world.device, report)

        report(f"{len(run.heldout)} held-out samples, from the cache alone")
        heldout = heldout_figures(run, world, seed=options.seed)

        turns = cached_turns(run, options.num_prompts, max_new_tokens=options.max_new_tokens)
        bigrams = bigram_table(run.source.read(int(sample)) for sample in run.split.train)
        chains = _chain_drafters(run, options, GREEDY, bigrams, world.device)
        measurements = measure_replayed(
            run.source, chains, turns, seed=options.seed, device=world.device, report=report
        )
        if target is not None:
            prompts = target.prompts or [turn.prompt for turn in turns]
            drafters = [*_chain_drafters(run, options, options.rule, bigrams, world.device), *trees]
            measurements += measure_real(target, drafters, prompts, options, report)

    result = EvalReport(
        run=str(folder),
        heldout_depths=num_depths,
        heldout=heldout,
        bigram_acceptance_length=bigram_acceptance_length(run.source, run.split, num_depths),
        own_text_share=own_text_share(run.source, turns),
        measurements=tuple(measurements),
        target=TargetMatch() if target is None else target.match,
    )
    publish_json(folder / "eval.json", result.to_json())
    return result


def _chain_drafters(
    run: FinishedRun, options: EvalOptions, rule: SamplingRule, bigrams: Ints, device: torch.device
) -> list[Drafter]:
    """Return the baselines at the greatest depth, and the draft at each."""
    deepest = max(options.depths)
    baselines: list[Drafter] = [bigram_drafter(bigrams, deepest, device), lookup_drafter(deepest, device)]
    return [
        *(baselines if options.baselines else ()),
        *(chain_drafter(run, depth, rule) for depth in options.depths),
    ]
