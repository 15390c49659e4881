"""The answers of a shard as they come: a log that a kill at any byte leaves usable, so that none is sampled twice."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.publish import explained_os_errors
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.generation.answer_log import json_line
from eaglepipe.precompute.answers.outcome import Answered

ANSWERS_FOLDER = f"{WORK_FOLDER}/answers"
_DIGEST = "xxh3_128"


class ShardAnswers:
    """One shard's log; only the process that has claimed the shard appends to it."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.path = folder / ANSWERS_FOLDER / f"{shard:05d}.jsonl"
        self._end: int | None = None  # behind the last whole line, once that is known

    def read(self) -> dict[str, Answered]:
        """Return the outcomes by the ids of their prompts, up to the first line that is torn or damaged."""
        outcomes, self._end = self._read()
        return outcomes

    def append(self, outcomes: Iterable[Answered]) -> None:
        """Add outcomes in the place of all that follows the last whole line."""
        num_bytes = self._read()[1] if self._end is None else self._end
        data = b"".join(map(_line, outcomes))
        with explained_os_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "w+b") as stream:
                stream.truncate(num_bytes)
                stream.seek(num_bytes)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        self._end = num_bytes + len(data)

    def _read(self) -> tuple[dict[str, Answered], int]:
        outcomes: dict[str, Answered] = {}
        num_bytes = 0
        if not self.path.exists():
            return outcomes, 0
        with explained_read_errors(self.path), self.path.open("rb") as stream:
            for line in stream:
                if (outcome := _parsed(line)) is None:
                    break
                outcomes[outcome.sample_id] = outcome
                num_bytes += len(line)
        return outcomes, num_bytes


def _line(outcome: Answered) -> bytes:
    fields: dict[str, Any] = {"id": outcome.sample_id, "rows": list(outcome.rows), "refused": outcome.refused}
    return json_line({_DIGEST: hash_json(fields), **fields})


def _parsed(line: bytes) -> Answered | None:
    if not line.endswith(b"\n"):
        return None
    try:
        fields = json.loads(line)
        digest = fields.pop(_DIGEST)
        if hash_json(fields) != digest:
            return None
        return Answered(sample_id=fields["id"], rows=tuple(fields["rows"]), refused=fields["refused"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
