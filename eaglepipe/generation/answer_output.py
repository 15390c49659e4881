"""The files of a run that fills one JSONL file: the log it continues from, and the output with its report beside it.

The output appears whole, by rename and last: its presence means that the files beside it are complete.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter

from eaglepipe.errors import ConfigError, CorruptError
from eaglepipe.files.json_object import diff_fields, read_json_object
from eaglepipe.files.leftovers import leftover_siblings, remove_abandoned
from eaglepipe.files.lock import remove_stale_lock
from eaglepipe.files.publish import publish_json, published_file
from eaglepipe.generation.answer_log import AnswerLog, Row, json_line, lock_of

R = TypeVar("R")  # a dataclass of figures


@dataclass(frozen=True, kw_only=True)
class AnswerOutput(Generic[R]):
    """The output of a run with this identity, which the recipe's `setting` names."""

    path: Path
    setting: str
    identity: Mapping[str, Any]
    result: type[R]
    log_identity: Mapping[str, Any] | None = None
    """What a log was begun with, if an unfinished one may be continued under other settings."""

    @property
    def log(self) -> Path:
        """The file that a killed run continues from."""
        return self._beside(".part")

    @property
    def left_out(self) -> Path:
        """The file of what the output lacks, and the reasons."""
        return self._beside(".left-out.jsonl")

    def open_log(self, window_rows: int) -> AnswerLog:
        """Open or continue the log, as `AnswerLog` does."""
        begun_with = self.identity if self.log_identity is None else self.log_identity
        return AnswerLog(self.log, begun_with, window_rows, setting=self.setting)

    def finished_earlier(self) -> R | None:
        """Return the result of the run that made the output, if there is one; what killed runs left is removed.

        Raises:
            ConfigError: another run, or no run, made it.
            CorruptError: its report is damaged.
        """
        remove_abandoned(leftover_siblings(self.path))
        if not self.path.exists():
            return None
        result = self._read_result()
        self.log.unlink(missing_ok=True)
        remove_stale_lock(lock_of(self.log))
        return result

    def publish(self, log: AnswerLog, result: R) -> None:
        """Publish the rows of a log and the files beside them."""
        with published_file(self.path) as rows:
            tally, figures = log.tally, cast("Any", result)
            if tally.skipped.total() + tally.errors.total() + tally.ended_early.total():
                with published_file(self.left_out) as left_out:
                    left_out.stream.writelines(json_line(_left_out(row)) for row in log.rows() if row.get("reason"))
            publish_json(self._report, {"settings": dict(self.identity), "result": asdict(figures)})
            rows.stream.writelines(json_line(row) for outcome in log.rows() for row in outcome.get("rows", ()))

    @property
    def _report(self) -> Path:
        return self._beside(".report.json")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _read_result(self) -> R:
        if not self._report.is_file():
            raise ConfigError(
                f"{self.path} exists and was not finished by this command; move it away, or choose another output"
            )
        earlier = read_json_object(self._report)
        settings, figures = earlier.get("settings"), earlier.get("result")
        if not isinstance(settings, dict) or not isinstance(figures, dict):
            raise self._not_a_report()
        if differences := list(diff_fields(settings, self.identity)):
            raise ConfigError(
                f"{self.path} was made with other settings; delete it, or choose another {self.setting}:\n"
                + "\n".join(f"  {line}" for line in differences)
            )
        try:
            line = json_line({**figures, "output": str(self.path), "seconds": 0.0})
            return TypeAdapter(self.result).validate_json(line, strict=True)
        except ValueError:  # of pydantic too
            raise self._not_a_report() from None

    def _not_a_report(self) -> CorruptError:
        return CorruptError(
            f"{self._report}: not what a finished run reports; delete it and {self.path.name} to start over"
        )


def _left_out(row: Row) -> Row:
    """Return a row of the log without the rows that are written to the output."""
    status = "ended_early" if row["status"] == "written" else row["status"]
    return {key: value for key, value in row.items() if key not in ("rows", "tokens", "figures")} | {"status": status}
