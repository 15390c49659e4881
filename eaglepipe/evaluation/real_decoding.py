"""Speculative decoding with the target: every draft method on the same prompts, beside the target alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eaglepipe.decoding.decode import DecodedAnswers, StoppingCriteria, speculate
from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.text_drafters import no_drafter
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.divergence import describe_difference
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.evaluation.measurement import EvalConditions, Measurement, measure
from eaglepipe.evaluation.options import EvalOptions, Report
from eaglepipe.evaluation.prompts import Prompt, file_prompts
from eaglepipe.evaluation.target_match import TargetMatch, match_target
from eaglepipe.files.json_object import text_config
from eaglepipe.precompute.inputs import read_chat_tokenizer
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.steps.stepping import SteppingTarget
from eaglepipe.target.steps.stops import stop_ids


@dataclass(frozen=True, kw_only=True)
class OpenTarget:
    """A target to decode with."""

    stepping: SteppingTarget
    stop_ids: frozenset[int]
    prompts: list[Prompt] | None  # of the file of prompts, if one is given
    match: TargetMatch


def open_target(run: FinishedRun, options: EvalOptions, device: torch.device, report: Report) -> OpenTarget:
    """Load the target, compare it with the run's, and read the file of prompts.

    Raises:
        TargetError: it cannot be loaded, or its architecture cannot read a tree of tokens.
        DataError: the file of prompts is absent, malformed or empty.
        EaglepipeError: it is of another shape than the run's, or has no tokenizer to read prompts with.
    """
    settings = run.recipe.target.model_copy(update={"path": str(options.target)})
    target = load_target(settings, str(device))
    expected = text_config(run.source.target_config)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        if (value := getattr(target.text_config, name)) != expected[name]:
            raise EaglepipeError(
                f"{settings.path}: {name} {value}, and the target that this draft was trained for has "
                f"{expected[name]}; give that one"
            )
    chat = read_chat_tokenizer(run.recipe.model_copy(update={"target": settings}), target.folder)
    stepping = SteppingTarget(HFEagle3TargetModel(target, run.source.spec.aux_layer_ids))
    match = match_target(run, settings)
    if match.warning is not None:
        report(f"warning: {match.warning}")
    prompts = None
    if options.prompts is not None:
        if chat is None:
            raise EaglepipeError(f"{options.prompts}: the target has no tokenizer to read prompts with")
        prompts = file_prompts(options.prompts, chat, options.num_prompts)
        for prompt in prompts:
            if (largest := int(prompt.token_ids.max())) >= target.vocab_size:
                raise EaglepipeError(
                    f"{options.prompts}: prompt {prompt.sample_id!r} holds token id {largest}, for which the target "
                    f"has no embedding: its vocabulary has {target.vocab_size}"
                )
    return OpenTarget(stepping=stepping, stop_ids=stop_ids(target, chat), prompts=prompts, match=match)


def measure_real(
    target: OpenTarget, drafters: Sequence[Drafter], prompts: Sequence[Prompt], options: EvalOptions, report: Report
) -> list[Measurement]:
    """Decode the prompts by the target alone, then with each drafter, whose random draws follow from the seed alone."""
    data = "held-out prompts" if options.prompts is None else options.prompts.name
    conditions = EvalConditions(kind="real", data=data, rule=options.rule, batch_size=options.batch_size)
    model, ids = target.stepping.model, [prompt.sample_id for prompt in prompts]
    ends = frozenset[int]() if options.ignore_end else target.stop_ids
    criteria = StoppingCriteria(max_new_tokens=options.max_new_tokens, stop_ids=ends)
    alone: DecodedAnswers | None = None
    measurements = []
    for drafter in (no_drafter(target.stepping.device), *drafters):
        report(f"decoding {len(prompts)} prompts: {drafter.method.label if alone else 'the target alone'}")
        decoded = speculate(
            target.stepping,
            drafter,
            [prompt.token_ids for prompt in prompts],
            rule=options.rule,
            criteria=criteria,
            batch_size=options.batch_size,
            generator=torch.Generator(target.stepping.device).manual_seed(options.seed),
        )
        alone = alone or decoded
        difference = describe_difference(model, prompts, alone, decoded) if options.rule.greedy else None
        measurements.append(
            measure(
                decoded, drafter.method, conditions, ids, seed=options.seed, alone=alone, first_difference=difference
            )
        )
    return measurements
