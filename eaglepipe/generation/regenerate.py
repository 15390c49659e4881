"""`eaglepipe data regenerate`: the target answers the prompts of conversations itself, for a draft learns its text.

Windows of rows are answered in order and appended to `<output>.part`, so that a killed run continues after the last
whole window; the output appears whole, by rename, when every row has its outcome.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eaglepipe.cache.identity import diff_fields
from eaglepipe.chat.sources import data_fingerprint, iter_conversations
from eaglepipe.chat.template import ChatTokenizer, load_chat_tokenizer, load_tokenizer
from eaglepipe.chat.types import Conversation
from eaglepipe.errors import ConfigError, DataError
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import PendingFile, explained_os_errors, publish_json
from eaglepipe.generation.answer_log import AnswerLog, Tally, json_line
from eaglepipe.generation.generate import Sampling
from eaglepipe.generation.rewrite import Rewriter, Rewritten
from eaglepipe.progress import ProgressLine, format_seconds
from eaglepipe.recipe.config import RegenerateConfig, TargetConfig
from eaglepipe.recipe.load import Recipe
from eaglepipe.signals import stop_on_signals
from eaglepipe.target.fingerprint import weights_fingerprint
from eaglepipe.target.load import check_tokenizer_fits, load_target, resolve_folder

WINDOW_BATCHES = 8  # of rows that are sorted by length together, and that a kill may cost

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RegenerateResult:
    """What became of the input rows: `success + errors + skipped = input`."""

    output: str
    input: int
    success: int
    skipped: int
    errors: int
    skipped_by_reason: dict[str, int]
    errors_by_reason: dict[str, int]
    tokens: int  # generated, in conversations that were kept
    seconds: float  # of this run; 0 when there was nothing left to do

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The output and what lies beside it."""

    output: Path

    @property
    def log(self) -> Path:
        return self.output.with_name(self.output.name + ".part")

    @property
    def report(self) -> Path:
        return self.output.with_name(self.output.name + ".report.json")

    @property
    def left_out(self) -> Path:
        return self.output.with_name(self.output.name + ".left-out.jsonl")


def run_regenerate(recipe: Recipe, report: Report = print) -> RegenerateResult:
    """Answer every conversation of `regenerate.sources` into `regenerate.output`, or finish an earlier run.

    Conversations end with their last assistant turn; one without any is answered after its last user turn. Left out,
    with their reason in `<output>.left-out.jsonl`: answers that did not end, and rows that cannot be answered.

    Raises:
        ConfigError: no `regenerate` section, an output that is another run's or no run's.
        DataError: malformed input, or not one row that could be answered.
        StoppedError: a signal came; everything finished so far is kept.
    """
    settings = _settings(recipe)
    files = _Files(output=Path(settings.output).expanduser())
    folder = resolve_folder(recipe.target)
    tokenizer = load_tokenizer(str(folder), None, recipe.target.trust_remote_code)
    chat = load_chat_tokenizer(tokenizer, recipe.data)
    identity = _identity(recipe.target, settings, weights_fingerprint(folder), chat)
    if files.output.exists():
        return _finished_earlier(files, identity, report)
    with AnswerLog(files.log, identity, settings.batch_size * WINDOW_BATCHES) as log:
        started = time.monotonic()
        num_rows = sum(1 for _ in iter_conversations(settings.sources))
        if log.tally.rows < num_rows:
            _answer_rest(recipe, chat, log, num_rows, report)
        result = _publish(files, identity, log, time.monotonic() - started)
    files.log.unlink()
    report(summary(result))
    return result


def summary(result: RegenerateResult) -> str:
    """The result in a few lines."""
    lines = [
        f"{result.output}: {result.success:,} conversations, {result.tokens:,} generated tokens, "
        f"in {format_seconds(result.seconds)}",
        f"  {result.success:,} success + {result.errors:,} errors + {result.skipped:,} skipped "
        f"= {result.input:,} input",
    ]
    lines += [f"  skipped {count:,}: {reason}" for reason, count in result.skipped_by_reason.items()]
    lines += [f"  error {count:,}: {reason}" for reason, count in result.errors_by_reason.items()]
    return "\n".join(lines)


def _settings(recipe: Recipe) -> RegenerateConfig:
    if recipe.regenerate is None:
        raise ConfigError("the recipe has no `regenerate` section: give it sources and an output")
    return recipe.regenerate


def _identity(target: TargetConfig, settings: RegenerateConfig, weights: str, chat: ChatTokenizer) -> dict[str, Any]:
    """Everything that decides the answers."""
    return {
        "target": {"weights": weights, "dtype": target.dtype},
        "tokenizer": chat.fingerprint(),
        "template": {"source": chat.template.source, "variables": dict(chat.template.variables)},
        "data": data_fingerprint(settings.sources),
        "sampling": settings.model_dump(mode="json", exclude={"sources", "output"}),
    }


def _finished_earlier(files: _Files, identity: Mapping[str, Any], report: Report) -> RegenerateResult:
    if not files.report.is_file():
        raise ConfigError(
            f"{files.output} exists and was not finished by this command; move it away, or choose another output"
        )
    earlier = read_json_object(files.report)
    differences = list(diff_fields(earlier["settings"], identity))
    if differences:
        raise ConfigError(
            f"{files.output} was made with other settings; delete it, or choose another regenerate.output:\n"
            + "\n".join(f"  {line}" for line in differences)
        )
    files.log.unlink(missing_ok=True)
    report(f"{files.output}: complete already, nothing to do")
    return RegenerateResult(**{**earlier["result"], "output": str(files.output), "seconds": 0.0})


def _answer_rest(recipe: Recipe, chat: ChatTokenizer, log: AnswerLog, num_rows: int, report: Report) -> None:
    settings, done = _settings(recipe), log.tally.rows
    window_rows = settings.batch_size * WINDOW_BATCHES
    if done:
        report(f"continuing after {done:,} of {num_rows:,} conversations")
    rest = islice(iter_conversations(settings.sources), done, None)
    with stop_on_signals() as stop:
        rewriter = _load_rewriter(recipe, chat)
        started, num_tokens = time.monotonic(), 0
        with ProgressLine("regenerate", total=num_rows, unit="conversations", initial=done) as progress:
            for window, conversations in enumerate(_windows(rest, window_rows), start=done // window_rows):
                stop.raise_if_set(f"{log.tally.rows:,} of {num_rows:,} conversations are in {log.path}")
                rewritten = rewriter.rewrite(conversations, window)
                log.append([_row(*pair) for pair in zip(conversations, rewritten, strict=True)])
                num_tokens += sum(outcome.num_tokens for outcome in rewritten)
                progress.update(len(conversations), f"{num_tokens / (time.monotonic() - started):,.0f} tok/s")


def _load_rewriter(recipe: Recipe, chat: ChatTokenizer) -> Rewriter:
    settings = _settings(recipe)
    target = load_target(recipe.target, recipe.precompute.device)
    check_tokenizer_fits(chat.vocab_size, target.vocab_size)
    sampling = Sampling(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p)
    return Rewriter(target=target, chat=chat, sampling=sampling, batch_size=settings.batch_size, seed=settings.seed)


def _windows(conversations: Iterator[Conversation], rows: int) -> Iterator[list[Conversation]]:
    while window := list(islice(conversations, rows)):
        yield window


def _row(conversation: Conversation, rewritten: Rewritten) -> dict[str, Any]:
    identity = {"id": conversation.sample_id, "source": conversation.source}
    if rewritten.status != "written":
        why = {"status": rewritten.status, "reason": rewritten.reason, "detail": rewritten.detail}
        return {**why, **identity, "where": conversation.where}
    tools = {"tools": list(conversation.tools)} if conversation.tools else {}
    row = {**identity, "messages": list(rewritten.messages), **tools}
    return {"status": rewritten.status, "tokens": rewritten.num_tokens, "conversation": row}


def _publish(files: _Files, identity: Mapping[str, Any], log: AnswerLog, seconds: float) -> RegenerateResult:
    """The output last: its presence says that everything beside it is complete."""
    result = _result(files.output, log.tally, seconds)
    if result.success == 0:
        raise DataError(f"no conversation could be answered:\n{summary(result)}")
    left_out = PendingFile(files.left_out)
    output = PendingFile(files.output)
    try:
        with explained_os_errors(files.output):
            for row in log.rows():
                if row["status"] == "written":
                    output.stream.write(json_line(row["conversation"]))
                else:
                    left_out.stream.write(json_line(row))
        if result.skipped + result.errors:
            left_out.publish()
        publish_json(files.report, {"settings": dict(identity), "result": result.to_json()})
        output.publish()
    finally:
        left_out.abort()
        output.abort()
    return result


def _result(output: Path, tally: Tally, seconds: float) -> RegenerateResult:
    return RegenerateResult(
        output=str(output),
        input=tally.rows,
        success=tally.written,
        skipped=tally.skipped.total(),
        errors=tally.errors.total(),
        skipped_by_reason=dict(sorted(tally.skipped.items())),
        errors_by_reason=dict(sorted(tally.errors.items())),
        tokens=tally.tokens,
        seconds=seconds,
    )
