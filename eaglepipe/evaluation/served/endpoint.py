"""Judges a running server: the acceptance that its counters show for prompts sent to it, and other traffic on it."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from eaglepipe.decoding.drafters import DraftMethod
from eaglepipe.errors import EaglepipeError
from eaglepipe.evaluation.figures.bootstrap import Estimate
from eaglepipe.evaluation.figures.engine_count import EngineCount
from eaglepipe.evaluation.figures.measured_sets import ALL_SETS
from eaglepipe.evaluation.figures.measurement import EvalConditions, Measurement
from eaglepipe.evaluation.finished_run import FinishedRun
from eaglepipe.evaluation.options import EvalOptions, Report
from eaglepipe.evaluation.prompts import PromptSet
from eaglepipe.evaluation.served.server import Counters, Server, ServerAnswer, generated, open_server

_DRAFTS = "vllm:spec_decode_num_drafts"
_BY_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos"


@dataclass(frozen=True, kw_only=True)
class EndpointFigures:
    """Figures of a server, and what is to be known about them."""

    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]

    @property
    def depth(self) -> int:
        """Guesses a round, as the server is configured."""
        return self.measurements[0].method.depth


def measure_endpoint(
    run: FinishedRun,
    sets: Sequence[PromptSet],
    stop_ids: Collection[int] | None,
    *,
    options: EvalOptions,
    report: Report,
) -> EndpointFigures:
    """Send the prompts to a server, by token ids, and read its counters before and after each set.

    Args:
        stop_ids: tokens that end an answer; None leaves them to the server.

    Raises:
        UnreachableError, EaglepipeError: as `open_server`; it serves another model, or without a draft.
    """
    assert options.endpoint is not None
    server = open_server(options.endpoint.url, options.endpoint.key_variable)
    _require_target(server, run, options)
    sampling = {
        "temperature": options.rule.temperature,
        "top_p": options.rule.top_p,
        "max_tokens": options.max_new_tokens,
        **({} if stop_ids is None else {"ignore_eos": True, "stop_token_ids": sorted(stop_ids)}),
    }
    measured: list[Measurement] = []
    notes: list[str] = []
    for part in sets:
        report(f"{server.url} ({server.engine}) answers {len(part.prompts)} prompts: {part.name}")
        before, started = server.counters(), time.monotonic()
        answers = server.answer([prompt.token_ids.tolist() for prompt in part.prompts], sampling, options.batch_size)
        seconds = time.monotonic() - started
        tokens = sum(len(answer.token_ids) for answer in answers)
        after = server.settled_counters(before, tokens)
        others = generated(after) - generated(before) - tokens
        if others != 0:
            notes.append(
                f"WARNING: {part.name}: the server generated {others:+,} tokens beside the {tokens:,} of this "
                "evaluation, so its counters are not of these alone; repeat it on a server without other traffic"
            )
        count = _count(server, before, after, answers)
        measured.append(_measurement(run, server, part, count, tokens, seconds, options))
    if len(measured) > 1:
        measured.append(_joined(run, server, measured, sets, options))
    return EndpointFigures(measurements=tuple(measured), notes=tuple(notes))


def _require_target(server: Server, run: FinishedRun, options: EvalOptions) -> None:
    """Compare the served model with the run's target, by the last part of its name or path."""
    expected = [run.recipe.target.path, *([str(options.target)] if options.target else [])]
    served = [name for name in (server.model, server.served_path) if name]
    if not {Path(name).name for name in served} & {Path(name).name for name in expected}:
        raise EaglepipeError(
            f"{server.url} serves {' from '.join(dict.fromkeys(served))}, and the run's target is {expected[-1]}; "
            "give the address of a server of that target (if it has another name there, pass it its folder by --target)"
        )


def _count(server: Server, before: Counters, after: Counters, answers: Sequence[ServerAnswer]) -> EngineCount:
    def grown(name: str) -> int:
        return int(after.get(name, 0) - before.get(name, 0))

    if not server.is_sglang:
        positions = sorted(int(name[len(_BY_POSITION) + 1 : -1]) for name in after if name.startswith(_BY_POSITION))
        if not positions:
            raise EaglepipeError(f"{server.url}: the server drafts nothing; start it with --speculative-config")
        accepted = tuple(grown(f"{_BY_POSITION}[{position}]") for position in positions)
        return EngineCount(rounds=grown(_DRAFTS), accepted_by_position=accepted)
    rounds = [answer.rounds for answer in answers]
    if not any(rounds):
        raise EaglepipeError(f"{server.url}: the server drafts nothing; start it with --speculative-algorithm")
    total = sum(filter(None, rounds))
    tokens = sum(len(answer.token_ids) - 1 for answer in answers)
    return EngineCount(rounds=total, accepted_by_position=(max(0, tokens - total),))  # not told by position


def _measurement(  # noqa: PLR0917
    run: FinishedRun,
    server: Server,
    part: PromptSet,
    count: EngineCount,
    tokens: int,
    seconds: float,
    options: EvalOptions,
) -> Measurement:
    depth = int(server.counters().get("sglang:spec_num_steps", 0)) if server.is_sglang else 0
    depth = depth or (max(options.depths) if server.is_sglang else len(count.accepted_by_position))
    added = tokens - len(part.prompts)
    return Measurement(
        method=DraftMethod(drafter=run.recipe.train.family.label, shape="chain", depth=depth, size=depth),
        conditions=EvalConditions(
            kind="served", data=part.name, rule=options.rule, batch_size=options.batch_size, engine=server.engine
        ),
        prompts=len(part.prompts),
        rounds=count.rounds,
        acceptance_length=Estimate(value=added / max(1, count.rounds), low=None, high=None),
        tokens_per_forward=tokens / max(1, count.rounds + len(part.prompts)),
        acceptance_by_depth=() if server.is_sglang else count.acceptance_by_position,
        count=count,
        tokens_per_s=tokens / seconds if seconds else None,
    )


def _joined(
    run: FinishedRun, server: Server, parts: Sequence[Measurement], sets: Sequence[PromptSet], options: EvalOptions
) -> Measurement:
    count = parts[0].count
    assert count is not None
    for part in parts[1:]:
        assert part.count is not None
        count += part.count
    tokens = round(sum(p.acceptance_length.value * p.rounds + p.prompts for p in parts))
    seconds = sum((p.acceptance_length.value * p.rounds + p.prompts) / p.tokens_per_s for p in parts if p.tokens_per_s)
    everything = PromptSet(name=ALL_SETS, prompts=[prompt for part in sets for prompt in part.prompts])
    return _measurement(run, server, everything, count, tokens, seconds, options)
