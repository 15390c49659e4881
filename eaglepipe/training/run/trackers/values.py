"""The numbers that trackers draw, by name."""

from typing import Protocol

from eaglepipe.training.run.metrics import StepRecord
from eaglepipe.training.run.state import Evaluation

_STEP_SCALARS = ("loss", "learning_rate", "grad_norm", "simulated_acceptance_length", "tokens_per_s", "data_wait_share")


class Drawing(Protocol):
    """An open tracker."""

    def add(self, values: dict[str, float], step: int) -> None:
        """Add numbers of a step."""

    def close(self) -> None:
        """Send what is left, and end."""


def step_values(record: StepRecord) -> dict[str, float]:
    """Return the numbers of an optimizer step."""
    return {f"train/{name}": getattr(record, name) for name in _STEP_SCALARS}


def evaluation_values(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers of an evaluation."""
    by_depth = {
        "accuracy": evaluation.accuracy_by_depth,
        "conditional_acceptance": evaluation.conditional_acceptance_by_depth,
    }
    return {
        "heldout/loss": evaluation.loss,
        "heldout/simulated_acceptance_length": evaluation.simulated_acceptance_length,
        **{
            f"heldout/{name}_depth_{depth}": rate
            for name, rates in by_depth.items()
            for depth, rate in enumerate(rates)
        },
    }
