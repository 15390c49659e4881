"""TensorBoard: an event file in the run folder."""

from pathlib import Path


class TensorBoardFile:
    """An event file; on resume, events of later steps are purged."""

    def __init__(self, folder: Path, *, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else None)

    def add(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
