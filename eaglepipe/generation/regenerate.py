"""`eaglepipe data regenerate`: the target answers the prompts itself, since a draft must learn the target's own text.

Outcomes are appended in the order of the input to `<output>.part`, from which a killed run continues: by transformers
a window of rows at a time, by an engine row by row. The output appears whole, by rename, when
every row has its outcome.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.sources import Conversation, fingerprint_sources, iter_conversations
from eaglepipe.chat.template import load_chat_tokenizer
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.chat.tokenizer_files import load_tokenizer
from eaglepipe.errors import ConfigError, DataError
from eaglepipe.generation.answer_log import AnswerLog, Tally
from eaglepipe.generation.answer_output import AnswerOutput
from eaglepipe.generation.answering import Sampling
from eaglepipe.generation.endpoint.numbered_log import NumberedLog
from eaglepipe.generation.endpoint.run import Limits, Outcomes, answer_by_endpoint, figures_of, log_of, warnings_of
from eaglepipe.generation.opening import Answering, open_answerer
from eaglepipe.generation.ordered_log import OrderedRows, Windows
from eaglepipe.generation.outcome_rows import FORMAT, RowOf, faulty_row, rows_of_outcomes
from eaglepipe.generation.rewrite import Rewriter
from eaglepipe.progress import ProgressLine, format_seconds
from eaglepipe.recipe.generation import RegenerateConfig
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import StopFlag, stop_on_signals
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.identity import target_fields
from eaglepipe.target.load import check_tokenizer_fits, read_model_config, resolve_folder, text_config_of
from eaglepipe.target.positions import max_positions
from eaglepipe.target.steps.stops import stop_ids_of_folder

WINDOW_BATCHES = 8  # of rows that are sorted by length together, and that a kill may cost

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RegenerateResult:
    """Outcomes of the input rows: `success + errors + skipped = input`."""

    output: str
    input: int
    success: int
    skipped: int
    errors: int
    skipped_by_reason: dict[str, int]
    errors_by_reason: dict[str, int]
    rows: int  # written: one for each run of turns that share their tokens
    ended_early_by_reason: dict[str, int]  # conversations whose later turns are left out
    tokens: int  # generated, in conversations that were answered
    seconds: float  # of this run; 0 if there was nothing left to do
    figures: dict[str, int] = field(default_factory=dict)  # of answers that an endpoint gave without token ids


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What is answered, and by the target in which folder."""

    settings: RegenerateConfig
    folder: Path
    num_rows: int


def run_regenerate(recipe: Recipe, report: Report = print) -> RegenerateResult:
    """Answer every conversation of `regenerate.sources` into `regenerate.output`, or finish an earlier run.

    Conversations end with their last assistant turn; one without any is answered after its last user turn. Rows hold
    the token ids that the target read and wrote, and the mask of those it wrote. Left out, with their reason in
    `<output>.left-out.jsonl`: answers that did not end, rows that cannot be answered, and the turns after an answer
    that the template cannot show again.

    Raises:
        ConfigError: no `regenerate` section, or an output that another run, or no run, has made.
        DataError: input that cannot be read, or not one row that could be answered.
        CorruptError: the report of a finished run is damaged.
        StoppedError: a signal came; everything finished so far stays.
    """
    if recipe.regenerate is None:
        raise ConfigError("the recipe has no `regenerate` section: give it sources and an output")
    settings, output = recipe.regenerate, Path(recipe.regenerate.output).expanduser()
    by_endpoint = settings.endpoint is not None
    folder = resolve_folder(recipe.target, weights=not by_endpoint)
    prompts = recipe.data.model_copy(update={"sources": settings.sources})
    chat = load_chat_tokenizer(load_tokenizer(folder, recipe.target.trust_remote_code), prompts)
    model_config = read_model_config(folder, recipe.target)
    # before the fingerprint, which takes time and memory by the largest id
    check_tokenizer_fits(chat.plain_vocab_size, text_config_of(model_config, recipe.target.path).vocab_size)
    corpus = fingerprint_sources(settings.sources)
    in_windows = recipe.target.engine == "transformers"  # then the rows of a window share their draws
    identity = {
        "target": (
            {"endpoint_model": settings.model or recipe.target.path}
            if by_endpoint
            else target_fields(folder, model_config, recipe.target, weights=weights_fingerprint(folder))
        ),
        "tokenizer": chat.fingerprint(),
        "template": {"source": chat.template.sources(), "variables": dict(chat.template.variables)},
        "data": corpus.row_digest(),
        "format": FORMAT,
        "supervise": recipe.data.supervise,
        "sampling": {
            name: value for name, value in settings.sampling_fields().items() if in_windows or name != "batch_size"
        },
    }
    files = AnswerOutput(path=output, setting="regenerate.output", identity=identity, result=RegenerateResult)
    if (finished := files.finished_earlier()) is not None:
        report(f"{output}: complete already, nothing to do")
        return finished
    inputs = _Inputs(settings=settings, folder=folder, num_rows=corpus.num_rows)
    window_rows = settings.batch_size * WINDOW_BATCHES if in_windows else 1
    with log_of(files.log, identity) if by_endpoint else files.open_log(window_rows) as log:
        started = time.monotonic()
        if log.tally.rows < corpus.num_rows:
            if isinstance(log, NumberedLog):
                text_config = text_config_of(model_config, recipe.target.path)
                limits = Limits(
                    vocab_size=int(text_config.vocab_size),
                    max_positions=max_positions(text_config),
                    stop_ids=stop_ids_of_folder(folder, model_config, chat),
                )
                outcomes = Outcomes(faulty=faulty_row, of=rows_of_outcomes(recipe, chat))
                answer_by_endpoint(
                    recipe, chat, log, limits=limits, num_rows=corpus.num_rows, outcomes=outcomes, report=report
                )
            else:
                _answer_rest(recipe, inputs, chat, log, report=report)
        result = _result(output, log.tally, time.monotonic() - started)
        if by_endpoint:
            result = replace(result, figures=figures_of(log.rows()))
        files.publish(log, result)
    files.log.unlink(missing_ok=True)
    report(summary(result))
    return result


def summary(result: RegenerateResult) -> str:
    """Return the result in a few lines."""
    lines = [
        f"{result.output}: {result.success:,} conversations in {result.rows:,} rows, "
        f"{result.tokens:,} generated tokens, in {format_seconds(result.seconds)}",
        f"  {result.success:,} success + {result.errors:,} errors + {result.skipped:,} skipped "
        f"= {result.input:,} input",
    ]
    lines += [
        f"  later turns left out of {count:,}: {reason}" for reason, count in result.ended_early_by_reason.items()
    ]
    lines += [f"  skipped {count:,}: {reason}" for reason, count in result.skipped_by_reason.items()]
    lines += [f"  error {count:,}: {reason}" for reason, count in result.errors_by_reason.items()]
    return "\n".join(lines + warnings_of(result.figures))


def _answer_rest(recipe: Recipe, inputs: "_Inputs", chat: ChatTokenizer, log: AnswerLog, *, report: Report) -> None:
    settings, done = inputs.settings, log.tally.rows
    if done:
        report(f"continuing after {done:,} of {inputs.num_rows:,} conversations")
    how = Answering(
        chat=chat,
        sampling=Sampling(**settings.model_dump(include={"max_new_tokens", "temperature", "top_p"})),
        batch_size=settings.batch_size,
    )
    saved = f"the conversations that were answered are in {log.path}"
    rest = islice(iter_conversations(settings.sources), done, None)
    row_of = rows_of_outcomes(recipe, chat)
    with (
        stop_on_signals() as stop,
        open_answerer(recipe, inputs.folder, how, stop=stop, saved=saved, report=report) as opened,
        ProgressLine("regenerate", total=inputs.num_rows, unit="conversations", initial=done) as progress,
    ):
        rewriter = Rewriter(
            answerer=opened.answerer,
            chat=chat,
            max_new_tokens=settings.max_new_tokens,
            vocab_size=opened.vocab_size,
            max_positions=opened.max_positions,
            seed=settings.seed,
            keep_unfinished=settings.keep_unfinished,
        )
        answering = _Answering(rest=rest, log=log, row_of=row_of, progress=progress)
        if opened.at_once is None:
            answering.in_windows(rewriter, settings.batch_size * WINDOW_BATCHES, stop)
        else:
            answering.in_stream(rewriter, opened.at_once)


@dataclass(frozen=True, kw_only=True)
class _Answering:
    """Rows on their way through a rewriter to the log, and a line about them."""

    rest: Iterator[Conversation | FaultyRow]
    log: AnswerLog
    row_of: RowOf
    progress: ProgressLine

    def in_windows(self, rewriter: Rewriter, window_rows: int, stop: StopFlag) -> None:
        """Answer whole windows, whose rows share their draws."""
        started, num_tokens = time.monotonic(), 0
        for window in count(self.log.tally.rows // window_rows):
            stop.raise_if_set(f"{self.log.tally.rows:,} conversations are in {self.log.path}")
            if not (rows := list(islice(self.rest, window_rows))):
                break
            readable = [(number, row) for number, row in enumerate(rows) if isinstance(row, Conversation)]
            with stop.abandonable(f"{self.log.tally.rows:,} conversations are in {self.log.path}"):
                outcomes = dict(rewriter.rewrite(readable, window=window))
            self.log.append(
                [
                    faulty_row(row) if isinstance(row, FaultyRow) else self.row_of(row, outcomes[number])
                    for number, row in enumerate(rows)
                ]
            )
            num_tokens += sum(outcome.num_tokens for outcome in outcomes.values())
            self.progress.update(len(rows), f"{num_tokens / (time.monotonic() - started):,.0f} tok/s")

    def in_stream(self, rewriter: Rewriter, at_once: int) -> None:
        """Answer rows as they come, each with draws of its own; the log has them in the order of the input."""
        started, num_tokens = time.monotonic(), 0
        on_their_way: dict[int, Conversation] = {}
        with Windows(self.log, 1) as windows:
            ordered = OrderedRows(windows, self.log.tally.rows)

            def readable() -> Iterator[tuple[int, Conversation]]:
                for number, row in enumerate(self.rest, start=self.log.tally.rows):
                    if isinstance(row, FaultyRow):
                        ordered.put(number, faulty_row(row))
                        self.progress.update(1)
                    else:
                        on_their_way[number] = row
                        yield number, row

            for number, rewritten in rewriter.rewrite(readable(), at_once=at_once):
                ordered.put(number, self.row_of(on_their_way.pop(number), rewritten))
                num_tokens += rewritten.num_tokens
                self.progress.update(1, f"{num_tokens / (time.monotonic() - started):,.0f} tok/s")


def _result(output: Path, tally: Tally, seconds: float) -> RegenerateResult:
    """Return the figures of a finished run.

    Raises:
        DataError: not one conversation was answered.
    """
    result = RegenerateResult(
        output=str(output),
        input=tally.rows,
        success=tally.written,
        skipped=tally.skipped.total(),
        errors=tally.errors.total(),
        skipped_by_reason=dict(sorted(tally.skipped.items())),
        errors_by_reason=dict(sorted(tally.errors.items())),
        rows=tally.output_rows,
        ended_early_by_reason=dict(sorted(tally.ended_early.items())),
        tokens=tally.tokens,
        seconds=seconds,
    )
    if result.success == 0:
        raise DataError(f"no conversation could be answered:\n{summary(result)}")
    return result
