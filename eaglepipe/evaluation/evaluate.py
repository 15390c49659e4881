"""`eaglepipe eval`: how good a run's draft is, simulated from its cache and, where the target is at hand, for real."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.text_drafters import bigram_drafter, lookup_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.bigram import Ints, bigram_acceptance_length, bigram_table
from eaglepipe.evaluation.drafting import TreeShape, chain_drafter, tree_drafter
from eaglepipe.evaluation.figures import Conditions, Figure, make_figure
from eaglepipe.evaluation.heldout_counts import HeldoutFigures, count_heldout, heldout_figures
from eaglepipe.evaluation.prompts import Turn, cached_turns, file_turns
from eaglepipe.evaluation.real import DecodeSettings, OpenTarget, measure_real, open_target
from eaglepipe.evaluation.replay import own_text_share, replay
from eaglepipe.evaluation.same_target import TargetMatch
from eaglepipe.evaluation.table import eval_table
from eaglepipe.evaluation.trained import TrainedRun, open_run
from eaglepipe.files.publish import publish_json
from eaglepipe.training.objectives.interface import make_objective
from eaglepipe.training.run.distributed import join_world

Report = Callable[[str], None]
GREEDY = SamplingRule()


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What to measure, and on what."""

    caches: tuple[Path, ...] = ()  # default: as the run's recipe says
    target: Path | None = None
    real: bool = False
    prompts: Path | None = None  # conversations; default: the held-out samples
    depths: tuple[int, ...] = (5,)
    trees: tuple[TreeShape, ...] = ()
    rule: SamplingRule = GREEDY
    max_new_tokens: int = 128
    num_prompts: int = 64
    num_samples: int | None = None  # held out, of the cache; default: as the run's recipe says
    batch_size: int = 1
    ignore_end: bool = False
    baselines: bool = True
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """All figures of an evaluation; also `eval.json` in the run's folder."""

    run: str
    heldout_depths: int  # K of the held-out figures: what the draft was trained for
    heldout: tuple[HeldoutFigures, ...]
    bigram_acceptance_length: float  # as the held-out figures are counted: chain, every position
    own_text_share: float  # of the replayed text that is the target's greedy choice
    figures: tuple[Figure, ...]
    target: TargetMatch  # nothing is known of it where no target was asked for

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "heldout_depths": self.heldout_depths,
            "heldout": [asdict(figures) for figures in self.heldout],
            "bigram_acceptance_length": self.bigram_acceptance_length,
            "own_text_share": self.own_text_share,
            "target_matches": self.target.matches,
            "figures": [figure.to_json() for figure in self.figures],
            "table": self.table(),
        }

    def table(self) -> str:
        return eval_table(
            self.heldout,
            self.figures,
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
        decoding = _open_decoding(run, options, world.device, report) if options.real else None
        report(f"{len(run.heldout)} held-out samples, from the cache alone")
        counts = count_heldout(run, world)
        heldout = heldout_figures(counts, run, seed=options.seed)
        table = bigram_table(run.source.read(int(sample)) for sample in run.split.train)
        turns = cached_turns(run, options.num_prompts, max_new_tokens=options.max_new_tokens)
        job = _Job(run=run, turns=turns, successor=table, options=options, device=world.device, report=report)
        figures = _replayed(job)
        if decoding is not None:
            figures += _real(job, decoding)
    result = EvalReport(
        run=str(folder),
        heldout_depths=num_depths,
        heldout=tuple(heldout),
        bigram_acceptance_length=bigram_acceptance_length(run.source, run.split, num_depths),
        own_text_share=own_text_share(run.source, turns),
        figures=tuple(figures),
        target=TargetMatch() if decoding is None else decoding.target.match,
    )
    publish_json(folder / "eval.json", result.to_json())
    return result


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the measurements share."""

    run: TrainedRun
    turns: Sequence[Turn]
    successor: Ints
    options: EvalOptions
    device: torch.device
    report: Report


def _replayed(job: _Job) -> list[Figure]:
    conditions = Conditions(kind="simulated", data="held-out answers", rule=GREEDY, batch_size=1)
    ids = [turn.sample_id for turn in job.turns]
    figures = []
    for drafter in _chains(job, GREEDY):
        job.report(f"replaying {len(job.turns)} held-out answers: {drafter.method.label}")
        replayed = replay(job.run.source, drafter, job.turns, device=job.device, dtype=torch.float32)
        figures.append(make_figure(replayed, drafter.method, conditions, ids, seed=job.options.seed))
    return figures


@dataclass(frozen=True, kw_only=True)
class _Decoding:
    """What real decoding needs beside the run."""

    target: OpenTarget
    trees: Sequence[Drafter]
    prompts: Sequence[Turn] | None  # of a file; None: those of the held-out samples


def _open_decoding(run: TrainedRun, options: EvalOptions, device: torch.device, report: Report) -> _Decoding:
    """Opened first of all, so that what does not fit is told before the minutes that the cache takes."""
    trees = [tree_drafter(run, shape) for shape in options.trees]
    target = open_target(run, options.target, str(device))
    if target.match.warning is not None:
        report(f"warning: {target.match.warning}")
    if options.prompts is None:
        return _Decoding(target=target, trees=trees, prompts=None)
    if target.chat is None:
        raise EaglepipeError(f"{options.prompts}: the target has no tokenizer to read prompts with")
    return _Decoding(target=target, trees=trees, prompts=file_turns(options.prompts, target.chat, options.num_prompts))


def _real(job: _Job, decoding: _Decoding) -> list[Figure]:
    options = job.options
    settings = DecodeSettings(
        data="held-out prompts" if options.prompts is None else options.prompts.name,
        rule=options.rule,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        seed=options.seed,
        ignore_end=options.ignore_end,
    )
    turns = job.turns if decoding.prompts is None else decoding.prompts
    drafters = [*_chains(job, options.rule), *decoding.trees]
    return measure_real(decoding.target, drafters, turns, settings, job.report)


def _chains(job: _Job, rule: SamplingRule) -> list[Drafter]:
    """The baselines at the greatest depth, and the draft at each."""
    deepest = max(job.options.depths)
    baselines: list[Drafter] = [bigram_drafter(job.successor, deepest, job.device), lookup_drafter(deepest, job.device)]
    return [
        *(baselines if job.options.baselines else ()),
        *(chain_drafter(job.run, depth, rule) for depth in job.options.depths),
    ]
