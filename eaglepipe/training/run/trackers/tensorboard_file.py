"""The optional TensorBoard tracker beside metrics.jsonl."""

import importlib.util
from pathlib import Path

from eaglepipe.errors import ConfigError
from eaglepipe.training.run.metrics import StepRecord
from eaglepipe.training.run.state import Evaluation

_STEP_SCALARS = ("loss", "learning_rate", "grad_norm", "simulated_acceptance_length", "tokens_per_s", "data_wait_share")


def require_tensorboard() -> None:
    """Check before any work is done that TensorBoard is installed.

    Raises:
        ConfigError: the package is absent.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("train.tensorboard needs the tensorboard package: pip install 'eaglepipe[trackers]'")


class TensorBoard:
    """An event file in a folder; on resume, events of later steps are purged."""

    def __init__(self, folder: Path, *, last_step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else None)

    def add_step(self, record: StepRecord) -> None:
        for name in _STEP_SCALARS:
            self._writer.add_scalar(f"train/{name}", getattr(record, name), record.step)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        add, step = self._writer.add_scalar, evaluation.step
        add("heldout/loss", evaluation.loss, step)
        add("heldout/simulated_acceptance_length", evaluation.simulated_acceptance_length, step)
        for depth, accuracy in enumerate(evaluation.accuracy_by_depth):
            add(f"heldout/accuracy_depth_{depth}", accuracy, step)
        for depth, rate in enumerate(evaluation.conditional_acceptance_by_depth):
            add(f"heldout/conditional_acceptance_depth_{depth}", rate, step)

    def close(self) -> None:
        self._writer.close()
