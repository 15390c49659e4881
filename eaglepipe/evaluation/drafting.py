"""Which way a trained draft drafts: by its class, and by whether it was trained to guess all depths at once."""

from dataclasses import dataclass
from typing import Any

from eaglepipe.decoding.draft_steps import DraftSteps
from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.eagle1_steps import Eagle1Steps
from eaglepipe.decoding.eagle3_steps import Eagle3Steps, PeagleSteps
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
    """A chain of `depth` guesses."""
    steps = draft_steps(run)
    return ParallelDrafter(steps, depth, rule) if isinstance(steps, PeagleSteps) else ChainDrafter(steps, depth, rule)


def tree_drafter(run: FinishedRun, shape: TreeShape) -> Drafter:
    """A dynamic tree.

    Raises:
        EaglepipeError: a P-EAGLE draft, which has no state to grow one from.
    """
    steps = draft_steps(run)
    if isinstance(steps, PeagleSteps):
        raise EaglepipeError("a P-EAGLE draft guesses all depths at once, so no tree grows from it; leave out --tree")
    return TreeDrafter(steps, depth=shape.depth, width=shape.width, size=shape.size)


def draft_steps(run: FinishedRun) -> DraftSteps:
    """The draft of a run, ready to be stepped.

    Raises:
        EaglepipeError: a class of draft that is not known here, or a cache that lacks what the draft needs.
    """
    draft: Any = run.draft
    classes = {cls.__name__ for cls in type(draft).__mro__}
    if "LlamaEagleDraftModel" in classes:
        return Eagle1Steps(draft, run.source.start_tensors(), run.source.head)
    if "LlamaEagle3DraftModel" not in classes:
        raise EaglepipeError(f"{type(draft).__name__}: eval does not know how this class of draft is stepped")
    return PeagleSteps(draft) if getattr(draft.config, "parallel_drafting", False) else Eagle3Steps(draft)
