"""Speculative decoding with the target: every draft method on the same prompts, beside the target alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.decoding.decode import DecodedAnswers, StoppingCriteria, speculate
from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.text_drafters import no_drafter
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.figures.measured_sets import Measured, count_prompts, measure_sets
from eaglepipe.evaluation.figures.measurement import EvalConditions
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.evaluation.options import EvalOptions, Report
from eaglepipe.evaluation.prompts import PromptSet
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
    chat: ChatTokenizer | None
    match: TargetMatch


def open_target(run: FinishedRun, options: EvalOptions, device: torch.device, report: Report) -> OpenTarget:
    """Load the target, and compare it with the run's.

    Raises:
        TargetError: it cannot be loaded, or its architecture cannot read a tree of tokens.
        EaglepipeError: it is of another shape than the run's.
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
    return OpenTarget(stepping=stepping, stop_ids=stop_ids(target, chat), chat=chat, match=match)


def measure_real(
    target: OpenTarget, drafters: Sequence[Drafter], sets: Sequence[PromptSet], options: EvalOptions, report: Report
) -> list[Measured]:
    """Decode the prompts by the target alone, then with each drafter, whose random draws follow from the seed alone."""
    conditions = EvalConditions(kind="real", data="", rule=options.rule, batch_size=options.batch_size)
    ends = frozenset[int]() if options.ignore_end else target.stop_ids
    criteria = StoppingCriteria(max_new_tokens=options.max_new_tokens, stop_ids=ends)
    alone: list[DecodedAnswers] | None = None
    measured = []
    for drafter in (no_drafter(target.stepping.device), *drafters):
        report(f"decoding {count_prompts(sets)} prompts: {drafter.method.label if alone else 'the target alone'}")
        decoded = [
            speculate(
                target.stepping,
                drafter,
                [prompt.token_ids for prompt in prompt_set.prompts],
                rule=options.rule,
                criteria=criteria,
                batch_size=options.batch_size,
                generator=torch.Generator(target.stepping.device).manual_seed(options.seed),
            )
            for prompt_set in sets
        ]
        alone = alone or decoded
        measured += measure_sets(
            sets, decoded, drafter.method, conditions, alone=alone, model=target.stepping.model, seed=options.seed
        )
    return measured
