"""Whether the target at hand has the weights that a run's caches were made from.

A draft may well be judged on a sibling of its target, a fine-tuned one say: that is told, not refused.
"""

from dataclasses import dataclass

from eaglepipe.cache.identity import IDENTITY_PREFIX
from eaglepipe.evaluation.trained import TrainedRun
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.load import resolve_folder


@dataclass(frozen=True, kw_only=True)
class TargetMatch:
    """`matches` is None where there is nothing to compare; `warning` says what a difference means."""

    matches: bool | None = None
    warning: str | None = None


def match_target(run: TrainedRun, target: TargetConfig) -> TargetMatch:
    """Compare by content, which reads the target's weights once; not at all where the caches do not say.

    Raises:
        TargetError: the weights are missing or truncated.
    """
    if run.target_weights is None:
        return TargetMatch()
    found = weights_fingerprint(resolve_folder(target))
    if found == run.target_weights:
        return TargetMatch(matches=True)
    return TargetMatch(
        matches=False,
        warning=(
            f"{target.path} has weights {found[:IDENTITY_PREFIX]}, the run's cache was made from "
            f"{run.target_weights[:IDENTITY_PREFIX]}: this draft learned from another target, so that acceptance in "
            "real decoding says how well it carries over, and is mostly lower than with its own"
        ),
    )
