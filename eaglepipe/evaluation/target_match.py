"""Whether the target at hand has the weights that a run's caches were made from.

A draft may be evaluated on a sibling of its target, such as a fine-tuned one: that is a warning, not an error.
"""

from dataclasses import dataclass

from eaglepipe.cache.identity import IDENTITY_PREFIX
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.load import resolve_folder


@dataclass(frozen=True, kw_only=True)
class TargetMatch:
    """Result of the comparison: `matches` is None if nothing was compared; `warning` explains a difference."""

    matches: bool | None = None
    warning: str | None = None


def match_target(run: FinishedRun, target: TargetConfig) -> TargetMatch:
    """Compare the weights by content, reading the target's once, if the run's caches record theirs.

    Raises:
        TargetError: the weights are missing or truncated.
    """
    if run.target_weights is None:
        return TargetMatch()
    fingerprint = weights_fingerprint(resolve_folder(target))
    if fingerprint == run.target_weights:
        return TargetMatch(matches=True)
    return TargetMatch(
        matches=False,
        warning=(
            f"{target.path} has weights {fingerprint[:IDENTITY_PREFIX]}, the run's cache was made from "
            f"{run.target_weights[:IDENTITY_PREFIX]}: this draft learned from another target, so real decoding "
            "measures how well it carries over, and acceptance is mostly lower than with its own target"
        ),
    )
