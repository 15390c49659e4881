"""`eaglepipe data synthesize`: the target writes users' turns itself, for those who have no prompts (arXiv 2406.08464).

Draws are judged in the order of their numbers and appended to `<output>.part`, so that a killed run continues where it
was; the output appears whole, by rename, when there are enough prompts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.errors import ConfigError, DataError
from eaglepipe.generation.answer_log import AnswerLog, Tally
from eaglepipe.generation.answer_output import AnswerOutput
from eaglepipe.generation.answering import Answer, Sampling
from eaglepipe.generation.opening import Answering, open_answerer
from eaglepipe.generation.ordered_log import Windows
from eaglepipe.generation.synthesis.draws import Draws, find_openings, in_order, text_of
from eaglepipe.generation.synthesis.duplicates import SeenTexts
from eaglepipe.generation.synthesis.rules import Rules
from eaglepipe.generation.synthesis.user_turn import special_ids
from eaglepipe.progress import ProgressLine, format_seconds
from eaglepipe.recipe.config import SourceConfig
from eaglepipe.recipe.generation import SynthesizeConfig
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import stop_on_signals
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.identity import target_fields
from eaglepipe.target.load import check_tokenizer_fits, read_model_config, resolve_folder, text_config_of
from eaglepipe.target.positions import max_positions

FORMAT = 1  # of the output's rows

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SynthesizeResult:
    """Outcomes of the draws: `prompts + left_out = draws`."""

    output: str
    wanted: int
    draws: int
    prompts: int
    left_out: int
    left_out_by_reason: dict[str, int]
    tokens: int  # of the prompts, with their ends
    seconds: float  # of this run; 0 if there was nothing left to do


def run_synthesize(recipe: Recipe, report: Report = print) -> SynthesizeResult:
    """Write `synthesize.count` prompts of the target's own into `synthesize.output`, or finish an earlier run.

    An unfinished run may be finished with another `count` or `max_draws`; with a lower one all that it has stays.

    Rows are messages with an id. Draws that are left out are in `<output>.left-out.jsonl` with their reasons: turns
    that did not end, too short or too long ones, such as repeat themselves or an earlier one.

    Raises:
        ConfigError: no `synthesize` section, or an output that another run, or no run, has made.
        TemplateError: the target has no chat template, or the start of a user's turn cannot be found in it.
        DataError: not one prompt was kept.
        CorruptError: the report of a finished run is damaged.
        StoppedError: a signal came; everything finished so far stays.
    """
    if recipe.synthesize is None:
        raise ConfigError("the recipe has no `synthesize` section: give it an output and a count")
    settings, folder = recipe.synthesize, resolve_folder(recipe.target)
    rendered = recipe.data.model_copy(update={"sources": (SourceConfig(path=settings.output),)})
    chat = load_chat_tokenizer(load_tokenizer(folder, recipe.target.trust_remote_code), rendered)
    model_config = read_model_config(folder, recipe.target)
    text_config = text_config_of(model_config, recipe.target.path)
    check_tokenizer_fits(chat.plain_vocab_size, text_config.vocab_size)
    draws = _draws(settings, chat, max_positions(text_config))
    batched = recipe.target.engine == "transformers"  # then the other draws of a batch decide a draw, too
    identity: dict[str, Any] = {
        "target": target_fields(folder, model_config, recipe.target, weights=weights_fingerprint(folder)),
        "tokenizer": chat.fingerprint(),
        "template": {"source": chat.template.sources(), "variables": dict(chat.template.variables)},
        "format": FORMAT,
        "synthesize": settings.model_dump(mode="json", exclude={"output"} | (set() if batched else {"batch_size"})),
    }
    files = AnswerOutput(
        path=Path(settings.output).expanduser(),
        setting="synthesize.output",
        identity=identity,
        log_identity={**identity, "synthesize": _draw_settings(identity["synthesize"])},
        result=SynthesizeResult,
    )
    if (finished := files.finished_earlier()) is not None:
        report(f"{files.path}: complete already, nothing to do")
        return finished
    with files.open_log(settings.batch_size if batched else 1) as log:
        started = time.monotonic()
        if not _is_complete(settings, log.tally):
            _draw_rest(recipe, settings, folder, draws, log, report=report)
        result = _result(settings, files.path, log.tally, time.monotonic() - started)
        files.publish(log, result)
    files.log.unlink()
    report(summary(result))
    return result


def summary(result: SynthesizeResult) -> str:
    """Return the result in a few lines."""
    lines = [
        f"{result.output}: {result.prompts:,} prompts of {result.draws:,} draws in {format_seconds(result.seconds)}",
        f"  {result.prompts:,} prompts + {result.left_out:,} left out = {result.draws:,} draws",
        *(f"  left out {count:,}: {reason}" for reason, count in result.left_out_by_reason.items()),
    ]
    if result.prompts < result.wanted:
        lines.append(f"  {result.wanted:,} were wanted, and synthesize.max_draws ends the draws")
    return "\n".join(lines)


def _draws(settings: SynthesizeConfig, chat: ChatTokenizer, room: int | None) -> Draws:
    openings = find_openings(chat, settings.system)
    longest = max(len(opening.turn.token_ids) for opening in openings) + settings.max_new_tokens
    if room is not None and longest > room:
        raise ConfigError(
            f"synthesize.max_new_tokens is {settings.max_new_tokens}: with the template's start of a turn that makes "
            f"{longest} tokens, and the target has {room} positions"
        )
    rules = Rules(
        chat=chat,
        special_ids=special_ids(chat),
        min_tokens=settings.min_tokens,
        max_tokens=settings.max_tokens or settings.max_new_tokens,
        max_repetition=settings.max_repetition,
    )
    return Draws(openings=openings, rules=rules, seed=settings.seed)


def _draw_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out when to stop, which changes no draw."""
    return {name: value for name, value in settings.items() if name not in ("count", "max_draws")}


def _is_complete(settings: SynthesizeConfig, tally: Tally) -> bool:
    return tally.written >= settings.count or tally.rows >= settings.most_draws


def _draw_rest(
    recipe: Recipe, settings: SynthesizeConfig, folder: Path, draws: Draws, log: AnswerLog, *, report: Report
) -> None:
    done, seen = log.tally.rows, SeenTexts(settings.max_similarity)
    for row in log.rows():
        if row["status"] == "written":
            seen.add(text_of(row))
    if done:
        report(f"continuing after {done:,} draws, of which {log.tally.written:,} are prompts")
    how = Answering(
        chat=draws.rules.chat,
        sampling=Sampling(**settings.model_dump(include={"max_new_tokens", "temperature", "top_p"})),
        batch_size=settings.batch_size,
        ends=frozenset[int]().union(*(opening.turn.end_ids for opening in draws.openings)),
    )
    saved = f"the draws that were judged are in {log.path}"
    kept = log.tally.written
    with (
        stop_on_signals() as stop,
        open_answerer(recipe, folder, how, stop=stop, saved=saved, report=report) as opened,
        ProgressLine("synthesize", total=settings.count, unit="prompts", initial=kept) as progress,
        Windows(log, 1 if opened.at_once else settings.batch_size) as windows,
    ):
        drawn = _Drawn(progress, done)
        at_once, numbers = opened.at_once or settings.batch_size, range(done, settings.most_draws)
        for number, answer in in_order(opened.answerer, draws, numbers, at_once=at_once, arrived=drawn.add):
            row = draws.row(number, answer)
            if row["status"] == "written" and (reason := seen.add(text_of(row))) is not None:
                row = {"status": "skipped", "reason": reason, "detail": text_of(row), "id": row["rows"][0]["id"]}
            windows.put(row)
            kept += row["status"] == "written"
            progress.update(int(row["status"] == "written"))
            if kept == settings.count:
                break
            stop.raise_if_set(saved)
        windows.close()


class _Drawn:
    """Draws and tokens as they come, on a progress line: a long draw keeps those behind it from being judged."""

    def __init__(self, progress: ProgressLine, draws: int) -> None:
        self._progress, self._draws, self._tokens = progress, draws, 0
        self._started = time.monotonic()

    def add(self, answer: Answer) -> None:
        """Count a draw."""
        self._draws, self._tokens = self._draws + 1, self._tokens + len(answer.token_ids)
        rate = self._tokens / (time.monotonic() - self._started)
        self._progress.update(0, f"{self._draws:,} draws · {rate:,.0f} tok/s")


def _result(settings: SynthesizeConfig, output: Path, tally: Tally, seconds: float) -> SynthesizeResult:
    """Return the figures of a finished run.

    Raises:
        DataError: not one prompt was kept.
    """
    result = SynthesizeResult(
        output=str(output),
        wanted=settings.count,
        draws=tally.rows,
        prompts=tally.written,
        left_out=tally.rows - tally.written,
        left_out_by_reason=dict(sorted((tally.skipped + tally.errors).items())),
        tokens=tally.tokens,
        seconds=seconds,
    )
    if result.prompts == 0:
        raise DataError(f"no draw was kept as a prompt:\n{summary(result)}")
    return result
