"""Which way to draft a trained draft has: one line a class of draft and a shape."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.draft_steps import DraftSteps, Eagle3Steps
from eaglepipe.evaluation.drafters import Drafter
from eaglepipe.evaluation.strategies import ChainDrafter, TreeDrafter
from eaglepipe.evaluation.verify import SamplingRule


@dataclass(frozen=True, kw_only=True)
class TreeShape:
    """EAGLE-2's dynamic tree: `size` nodes down to `depth`, each level grown from `width` nodes."""

    size: int
    depth: int
    width: int


_STEPS: dict[str, Callable[[PreTrainedModel], DraftSteps]] = {"LlamaEagle3DraftModel": Eagle3Steps}


def chain_drafter(draft: PreTrainedModel, depth: int, rule: SamplingRule) -> Drafter:
    """A chain of `depth` guesses."""
    return ChainDrafter(_steps(draft), depth, rule)


def tree_drafter(draft: PreTrainedModel, shape: TreeShape) -> Drafter:
    """A dynamic tree."""
    return TreeDrafter(_steps(draft), depth=shape.depth, width=shape.width, size=shape.size)


def _steps(draft: PreTrainedModel) -> DraftSteps:
    name = type(draft).__name__
    if name not in _STEPS:
        raise EaglepipeError(f"{name}: eval knows how to step {', '.join(_STEPS)}")
    return _STEPS[name](draft)
