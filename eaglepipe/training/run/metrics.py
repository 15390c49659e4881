"""metrics.jsonl: one row for each optimizer step and evaluation, however often a run was killed."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eaglepipe.errors import CorruptError
from eaglepipe.files.publish import publish_bytes
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.training.run.metric_rows import RowParser
from eaglepipe.training.run.state import Evaluation


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The logged numbers of one optimizer step; rates and shares are those of its logging window."""

    step: int
    epoch: int
    loss: float = math.nan  # NaN, as others below, until the window closes
    learning_rate: float
    grad_norm: float = math.nan
    simulated_acceptance_length: float = math.nan
    tokens: int
    supervised_tokens: int
    padding: float  # share of slots that hold no token
    tokens_per_s: float = math.nan
    data_wait_share: float = math.nan


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """What this process fetched from object stores in a logging window, and the share of it that readers waited for."""

    step: int  # the last one of the window
    fetched_bytes: int
    fetched_bytes_per_s: float
    wait_share: float


class MetricsFile:
    """An open metrics file; rows are flushed as they come."""

    def __init__(self, path: Path, *, last_step: int) -> None:
        """Keep the rows up to `last_step`; later ones belong to steps that will be taken again."""
        self.path = path
        publish_bytes(path, _lines(row for row in read_metrics(path) if row["step"] <= last_step and last_step > 0))
        self._stream = path.open("a", encoding="utf-8")

    def add_step(self, record: StepRecord) -> None:
        self._add({"kind": "step", **asdict(record)})

    def add_store(self, record: StoreRecord) -> None:
        self._add({"kind": "store", **asdict(record)})

    def add_evaluation(self, evaluation: Evaluation) -> None:
        self._add({"kind": "evaluation", **asdict(evaluation)})

    def _add(self, row: dict[str, Any]) -> None:
        self._stream.write(_lines([row]).decode())
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a metrics file, NaN as None; a last line torn by a kill is left out.

    Raises:
        CorruptError: naming the first line that is no row.
    """
    if not path.exists():
        return
    with explained_read_errors(path), path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield _ROWS.parse(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise CorruptError(
                    f"{path}:{number}: no row of metrics ({error}); move the file away, and the run goes on without "
                    "the rows so far"
                ) from None


_ROWS = RowParser({"step": StepRecord, "evaluation": Evaluation, "store": StoreRecord})


def acceptance_length(hits: Iterable[float], valid: Iterable[float]) -> float:
    """Return `1 + sum_k hits[k] / max(1, valid[k])` of counts that were added up before."""
    return 1.0 + sum(hit / max(1.0, slots) for hit, slots in zip(hits, valid, strict=True))


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinities, for which JSON has no number, by null."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
