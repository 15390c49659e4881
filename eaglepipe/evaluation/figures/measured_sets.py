"""Figures of a draft method on one set of prompts or several: of each set, and of all together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eaglepipe.decoding.decode import DecodedAnswers
from eaglepipe.decoding.drafters import DraftMethod
from eaglepipe.evaluation.figures.divergence import describe_difference
from eaglepipe.evaluation.figures.measurement import EvalConditions, Measurement, measure
from eaglepipe.evaluation.prompts import PromptSet
from eaglepipe.target.capture import HFEagle3TargetModel

ALL_SETS = "all sets"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures, and the answers that they are figures of."""

    measurement: Measurement
    decoded: DecodedAnswers
    prompts: PromptSet


def measure_sets(
    sets: Sequence[PromptSet],
    decoded: Sequence[DecodedAnswers],
    method: DraftMethod,
    conditions: EvalConditions,
    *,
    alone: Sequence[DecodedAnswers],
    model: HFEagle3TargetModel | None,
    seed: int,
) -> list[Measured]:
    """Summarize the answers to each set, then those to all if there are several; `alone` are the target's own."""
    sets, decoded, alone = list(sets), list(decoded), list(alone)
    if len(sets) > 1:
        everything = [prompt for prompt_set in sets for prompt in prompt_set.prompts]
        sets.append(PromptSet(name=ALL_SETS, prompts=everything))
        decoded.append(_joined(decoded))
        alone.append(_joined(alone))
    measured = []
    for prompt_set, answers, own in zip(sets, decoded, alone, strict=True):
        difference = describe_difference(model, prompt_set.prompts, own, answers) if conditions.rule.greedy else None
        measurement = measure(
            answers,
            method,
            replace(conditions, data=prompt_set.name),
            prompt_set.sample_ids,
            seed=seed,
            alone=own,
            first_difference=difference,
        )
        measured.append(Measured(measurement=measurement, decoded=answers, prompts=prompt_set))
    return measured


def count_prompts(sets: Sequence[PromptSet]) -> int:
    """Return the number of prompts in all sets."""
    return sum(len(prompt_set.prompts) for prompt_set in sets)


def _joined(decoded: Sequence[DecodedAnswers]) -> DecodedAnswers:
    answers = tuple(answer for part in decoded for answer in part.answers)
    return DecodedAnswers(answers=answers, seconds=sum(part.seconds for part in decoded))
