"""Drafters of a trained draft, by its family."""

from dataclasses import dataclass
from typing import Any

from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.strategies import ChainDrafter, ParallelDrafter, TreeDrafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.finished_run import FinishedRun


@dataclass(frozen=True, kw_only=True)
class TreeShape:
    """EAGLE-2's dynamic tree: `size` nodes down to `depth`, each level grown from `width` nodes."""

    size: int
    depth: int
    width: int


def chain_drafter(run: FinishedRun, depth: int, rule: SamplingRule) -> Drafter:
    """Return a drafter of chains of `depth` guesses."""
    drafter = ParallelDrafter if run.recipe.train.family.is_parallel else ChainDrafter
    return drafter(_draft_steps(run), depth, rule)


def tree_drafter(run: FinishedRun, shape: TreeShape) -> Drafter:
    """Return a drafter of dynamic trees.

    Raises:
        EaglepipeError: the draft is parallel, so it has no state to grow a tree from.
    """
    family = run.recipe.train.family
    if family.is_parallel:
        reason = "guesses all depths at once, so no tree grows from it"
        raise EaglepipeError(f"a {family.label} draft {reason}; leave out --tree")
    return TreeDrafter(_draft_steps(run), depth=shape.depth, width=shape.width, size=shape.size)


def _draft_steps(run: FinishedRun) -> Any:
    """Return the `DraftSteps` of the run's family: `ParallelSteps` if it is parallel, `SequentialSteps` otherwise."""
    family = run.recipe.train.family
    return family.load(family.steps).from_source(run.draft, run.source)
