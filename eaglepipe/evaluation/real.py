"""Real speculative decoding of a run's draft with its target: every method on the same prompts, by the same path."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eaglepipe.chat.template import ChatTokenizer
from eaglepipe.decoding.decode import DecodedAnswers, StoppingCriteria, speculate
from eaglepipe.decoding.drafters import Drafter
from eaglepipe.decoding.text_drafters import no_drafter
from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.figures import Conditions, Figure, make_figure
from eaglepipe.evaluation.prompts import Turn
from eaglepipe.evaluation.same_target import TargetMatch, match_target
from eaglepipe.evaluation.same_text import first_difference, num_different
from eaglepipe.evaluation.trained import TrainedRun
from eaglepipe.files.json_object import text_config
from eaglepipe.precompute.inputs import read_chat_tokenizer
from eaglepipe.target.capture import HFEagle3TargetModel
from eaglepipe.target.load import load_target
from eaglepipe.target.stepping import SteppingTarget
from eaglepipe.target.stops import stop_ids

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class OpenTarget:
    """A target that can be stepped, its template, what ends its answers, and whether the run learned from it."""

    stepping: SteppingTarget
    chat: ChatTokenizer | None
    stops: frozenset[int]
    match: TargetMatch


@dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """How answers are decoded and reported."""

    data: str
    rule: SamplingRule
    max_new_tokens: int
    batch_size: int
    seed: int
    ignore_end: bool = False


def open_target(run: TrainedRun, path: Path | None, device: str) -> OpenTarget:
    """Load the target of a run, from `path` if it has moved.

    Raises:
        TargetError: it cannot be loaded, or its architecture cannot read a tree of tokens.
        EaglepipeError: it is of another shape than the run's.
    """
    settings = run.recipe.target if path is None else run.recipe.target.model_copy(update={"path": str(path)})
    recipe = run.recipe.model_copy(update={"target": settings})
    target = load_target(settings, device)
    expected = text_config(run.source.target_config)
    for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
        if getattr(target.text_config, name) != expected[name]:
            raise EaglepipeError(
                f"{settings.path}: {name} {getattr(target.text_config, name)}, and the target that this draft was "
                f"trained for has {expected[name]}; give that one"
            )
    chat = read_chat_tokenizer(recipe)
    stepping = SteppingTarget(HFEagle3TargetModel(target, run.source.spec.aux_layer_ids))
    match = match_target(run, settings)
    return OpenTarget(stepping=stepping, chat=chat, stops=stop_ids(target, chat), match=match)


def measure_real(
    target: OpenTarget,
    drafters: Sequence[Drafter],
    turns: Sequence[Turn],
    settings: DecodeSettings,
    report: Report,
) -> list[Figure]:
    """A figure for the target alone, then one for each drafter, on the same prompts."""
    conditions = Conditions(kind="real", data=settings.data, rule=settings.rule, batch_size=settings.batch_size)
    ids = [turn.sample_id for turn in turns]
    nothing = no_drafter(target.stepping.device)
    report(f"decoding {len(turns)} prompts: the target alone")
    alone = decode(target, nothing, turns, settings)
    figures = [make_figure(alone, nothing.method, conditions, ids, seed=settings.seed, alone=alone)]
    for drafter in drafters:
        report(f"decoding {len(turns)} prompts: {drafter.method.label}")
        run = decode(target, drafter, turns, settings)
        difference = _difference(target, turns, alone, run) if settings.rule.greedy else None
        figures.append(
            make_figure(
                run, drafter.method, conditions, ids, seed=settings.seed, alone=alone, first_difference=difference
            )
        )
    return figures


def decode(target: OpenTarget, drafter: Drafter, turns: Sequence[Turn], settings: DecodeSettings) -> DecodedAnswers:
    """Answers to all prompts, the random draws a function of the seed alone."""
    stops = frozenset[int]() if settings.ignore_end else target.stops
    return speculate(
        target.stepping,
        drafter,
        [turn.prompt for turn in turns],
        rule=settings.rule,
        criteria=StoppingCriteria(max_new_tokens=settings.max_new_tokens, stop_ids=stops),
        batch_size=settings.batch_size,
        generator=torch.Generator(target.stepping.device).manual_seed(settings.seed),
    )


def _difference(target: OpenTarget, turns: Sequence[Turn], alone: DecodedAnswers, run: DecodedAnswers) -> str | None:
    found = first_difference(target.stepping.model, list(turns), alone, run)
    return None if found is None else f"{num_different(alone, run)} of {len(turns)} prompts; first: {found}"
