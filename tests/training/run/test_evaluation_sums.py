import pytest
import torch

from eaglepipe.recipe.family_settings import Eagle3TrainConfig
from eaglepipe.training.objectives.eagle3 import Eagle3Objective
from eaglepipe.training.run.heldout import summarize
from eaglepipe.training.run.learner import Counters
from eaglepipe.training.run.metrics import acceptance_length
from eaglepipe.training.run.state import RunState


def counters(**rows: list[float]) -> Counters:
    return Counters(**{name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()})


def eagle3(ttt_steps: int, step_decay: float = 1.0) -> Eagle3Objective:
    return Eagle3Objective(Eagle3TrainConfig(ttt_steps=ttt_steps, step_decay=step_decay))


def test_rates_are_of_added_counts_and_the_loss_of_decayed_depths() -> None:
    first = counters(loss_sums=[30, 10], counts=[10, 5], correct=[5, 1], hits=[6, 2], valid=[10, 8])
    second = counters(loss_sums=[10, 0], counts=[30, 0], correct=[5, 0], hits=[4, 0], valid=[10, 0])
    evaluation = summarize(first + second, step=3, num_samples=2, objective=eagle3(2, 0.5))
    assert evaluation.loss == pytest.approx((1.0 * 40 / 40 + 0.5 * 10 / 5) / 1.5)
    assert evaluation.accuracy_by_depth == pytest.approx((10 / 40, 1 / 5))
    assert evaluation.acceptance_by_depth == pytest.approx((0.5, 0.25))
    assert evaluation.conditional_acceptance_by_depth == pytest.approx((0.5, 0.5))
    assert evaluation.simulated_acceptance_length == pytest.approx(1.75)


def test_no_valid_slot_at_all_is_a_length_of_one() -> None:
    assert acceptance_length([0, 0], [0, 0]) == 1.0


def test_best_is_the_longest_acceptance_then_the_lowest_loss_and_never_the_start() -> None:
    def measured(step: int, hits: int, loss: float) -> RunState:
        one = counters(loss_sums=[loss], counts=[1], correct=[0], hits=[hits], valid=[10])
        return RunState(step=step).after_evaluation(summarize(one, step=step, num_samples=1, objective=eagle3(1)))

    start = measured(0, 9, 1.0)
    assert start.best is None and start.first is not None
    state = measured(1, 3, 2.0)
    for step, hits, loss, best, without in [(2, 3, 1.5, 2, 0), (3, 3, 1.5, 2, 1), (4, 2, 0.1, 2, 2), (5, 4, 9.0, 5, 0)]:
        evaluation = measured(step, hits, loss).best
        assert evaluation is not None
        state = state.after_evaluation(evaluation) if state.step else state
        assert (state.best_step, state.evaluations_without_gain) == (best, without)
    assert not state.out_of_patience(1) and not state.out_of_patience(None)
