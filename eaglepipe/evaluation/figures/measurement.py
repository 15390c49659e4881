"""One row of the table of `eval`: a draft method, the conditions it was measured under, and its figures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from eaglepipe.decoding.decode import DecodedAnswers
from eaglepipe.decoding.drafters import DraftMethod
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.evaluation.figures.bootstrap import Estimate, bootstrap
from eaglepipe.evaluation.figures.engine_count import EngineCount, count_accepted


@dataclass(frozen=True, kw_only=True)
class EvalConditions:
    """What a draft method is measured on, without which its figures mean little."""

    kind: Literal["simulated", "real", "served"]
    data: str
    rule: SamplingRule
    batch_size: int
    engine: str | None = None  # of served figures, with its version

    @property
    def kind_label(self) -> str:
        return self.kind if self.engine is None else f"{self.kind}, {self.engine}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures of one draft method."""

    method: DraftMethod
    conditions: EvalConditions
    prompts: int
    rounds: int
    acceptance_length: Estimate  # tokens that a round adds
    tokens_per_forward: float  # of the target, including the prompts' own forwards
    acceptance_by_depth: tuple[float, ...]  # share of rounds that accepted more than k guesses and added a token
    count: EngineCount | None = None  # as engines count; None of replayed text
    tokens_per_s: float | None = None
    speedup: float | None = None  # over the target alone
    identical: bool | None = None  # to the target alone, token for token
    first_difference: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as one flat object, the acceptance length as its value and interval."""
        fields = asdict(self)
        method, conditions, length = (fields.pop(name) for name in ("method", "conditions", "acceptance_length"))
        return {
            **method,
            **conditions.pop("rule"),
            **conditions,
            "acceptance_length": length["value"],
            "acceptance_length_interval": [length["low"], length["high"]],
            **fields,
            "count": None if self.count is None else self.count.to_json(),
        }


def measure(
    decoded: DecodedAnswers,
    method: DraftMethod,
    conditions: EvalConditions,
    sample_ids: Sequence[str],
    *,
    seed: int,
    alone: DecodedAnswers | None = None,
    first_difference: str | None = None,
) -> Measurement:
    """Summarize decoded answers; intervals are over samples, one id an answer, whose prompts are drawn together.

    The target's own answers `alone` give the speedup and, if greedy, the identity, which `first_difference` refutes.
    """
    rounds = [np.array(answer.rounds, np.int64) for answer in decoded.answers]
    sums = {sample_id: np.zeros(2) for sample_id in sample_ids}  # tokens added, rounds
    for sample_id, added in zip(sample_ids, rounds, strict=True):
        sums[sample_id] += (added.sum(), len(added))
    counts = np.stack(list(sums.values()))
    (length,) = bootstrap(counts, lambda total: total[..., :1] / np.maximum(total[..., 1:], 1), seed=seed)
    added = np.concatenate(rounds)
    speed = decoded.num_tokens / decoded.seconds if decoded.seconds else None
    compared = alone is not None and conditions.rule.greedy
    return Measurement(
        method=method,
        conditions=conditions,
        prompts=len(decoded.answers),
        rounds=len(added),
        acceptance_length=length,
        tokens_per_forward=decoded.num_tokens / (len(added) + len(decoded.answers)),
        acceptance_by_depth=tuple(float((added > k + 1).mean()) if len(added) else 0.0 for k in range(method.depth)),
        count=None if conditions.kind == "simulated" else count_accepted(decoded.answers, method.depth),
        tokens_per_s=speed,
        speedup=None if alone is None or speed is None else speed * alone.seconds / alone.num_tokens,
        identical=first_difference is None if compared else None,
        first_difference=first_difference if compared else None,
    )
