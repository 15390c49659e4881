"""Acceptance as engines count it: guesses that the target agrees with, whether or not the answer ends before them.

The last round of an answer often accepts guesses beyond its end, which engines count and throw away. `rounds` of a
`DecodedAnswer` are the tokens that stay, so that this count is a little higher, and more so the shorter the answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eaglepipe.decoding.decode import DecodedAnswer


@dataclass(frozen=True, kw_only=True)
class EngineCount:
    """Rounds, and how many of them accepted more than 0, 1, ... guesses."""

    rounds: int
    accepted_by_position: tuple[int, ...]

    @property
    def acceptance_length(self) -> float:
        """1 + accepted / rounds."""
        return 1 + sum(self.accepted_by_position) / max(1, self.rounds)

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        return tuple(accepted / max(1, self.rounds) for accepted in self.accepted_by_position)

    def __add__(self, other: "EngineCount") -> "EngineCount":
        pairs = zip(self.accepted_by_position, other.accepted_by_position, strict=True)
        return EngineCount(rounds=self.rounds + other.rounds, accepted_by_position=tuple(a + b for a, b in pairs))

    def to_json(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "accepted": sum(self.accepted_by_position),
            "accepted_by_position": list(self.accepted_by_position),
            "acceptance_length": self.acceptance_length,
            "acceptance_by_position": list(self.acceptance_by_position),
        }


def count_rows(answers: Sequence[DecodedAnswer], sample_ids: Sequence[str], depth: int) -> NDArray[np.float64]:
    """Return rounds and accepted guesses by position of every sample, [N, 1 + depth], in order of first answers."""
    rows = {sample_id: np.zeros(1 + depth) for sample_id in sample_ids}
    for sample_id, answer in zip(sample_ids, answers, strict=True):
        accepted = np.array(answer.accepted, np.int64)
        rows[sample_id] += (len(accepted), *((accepted > k).sum() for k in range(depth)))
    return np.stack(list(rows.values()))


def count_accepted(answers: Sequence[DecodedAnswer], depth: int) -> EngineCount:
    """Count the rounds of decoded answers; `depth` guesses a round."""
    rounds, *accepted = count_rows(answers, [""] * len(answers), depth)[0].astype(int).tolist()
    return EngineCount(rounds=rounds, accepted_by_position=tuple(accepted))
