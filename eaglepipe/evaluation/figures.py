"""One line of the table: a way to draft, what it was measured on, and what came out; no figure is without it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eaglepipe.decoding.decode import DecodedAnswers
from eaglepipe.decoding.drafters import DraftMethod
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.evaluation.bootstrap import Estimate, bootstrap

Kind = Literal["simulated", "real"]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a figure was measured under."""

    kind: Kind
    data: str
    rule: SamplingRule
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How one method did."""

    method: DraftMethod
    conditions: Conditions
    prompts: int
    rounds: int
    acceptance_length: Estimate  # tokens that a round adds
    tokens_per_forward: float  # of the target, the prompts' own forwards counted
    acceptance_by_depth: tuple[float, ...]  # share of rounds that accepted more than k guesses and added a token
    tokens_per_s: float | None = None
    speedup: float | None = None  # against the target alone
    identical: bool | None = None  # to the target alone, token for token
    first_difference: str | None = None

    def to_json(self) -> dict[str, Any]:
        length = self.acceptance_length
        return {
            "drafter": self.method.drafter,
            "shape": self.method.shape,
            "depth": self.method.depth,
            "size": self.method.size,
            "temperature": self.conditions.rule.temperature,
            "top_p": self.conditions.rule.top_p,
            "data": self.conditions.data,
            "kind": self.conditions.kind,
            "batch_size": self.conditions.batch_size,
            "prompts": self.prompts,
            "rounds": self.rounds,
            "acceptance_length": length.value,
            "acceptance_length_interval": [length.low, length.high],
            "tokens_per_forward": self.tokens_per_forward,
            "acceptance_by_depth": list(self.acceptance_by_depth),
            "tokens_per_s": self.tokens_per_s,
            "speedup": self.speedup,
            "identical": self.identical,
            "first_difference": self.first_difference,
        }


def make_figure(
    run: DecodedAnswers,
    method: DraftMethod,
    conditions: Conditions,
    sample_ids: Sequence[str],
    *,
    seed: int,
    alone: DecodedAnswers | None = None,
    first_difference: str | None = None,
) -> Figure:
    """Sum up a run; intervals are over samples, whose prompts go together.

    Args:
        alone: the target's own decoding of the same prompts, for speed and, when greedy, for identity.
        first_difference: where the two differ, if they do.
    """
    rounds = [np.array(answer.rounds) for answer in run.answers]
    numbers = {sample_id: number for number, sample_id in enumerate(dict.fromkeys(sample_ids))}
    counts = np.zeros((len(numbers), 2))
    for sample_id, added in zip(sample_ids, rounds, strict=True):
        counts[numbers[sample_id]] += (added.sum(), len(added))
    (length,) = bootstrap(counts, lambda sums: sums[..., :1] / np.maximum(sums[..., 1:], 1), seed=seed)
    added = np.concatenate([*rounds, np.empty(0, np.int64)])
    num_forwards = len(added) + len(run.answers)
    speed = run.num_tokens / run.seconds if run.seconds else None
    compared = alone is not None and conditions.rule.greedy
    return Figure(
        method=method,
        conditions=conditions,
        prompts=len(run.answers),
        rounds=len(added),
        acceptance_length=length,
        tokens_per_forward=run.num_tokens / max(1, num_forwards),
        acceptance_by_depth=tuple(float((added > k + 1).mean()) if len(added) else 0.0 for k in range(method.depth)),
        tokens_per_s=speed,
        speedup=None if alone is None or speed is None else speed * alone.seconds / alone.num_tokens,
        identical=first_difference is None if compared else None,
        first_difference=first_difference if compared else None,
    )
