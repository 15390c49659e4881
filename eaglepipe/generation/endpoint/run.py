"""The answers of servers on their way to a log: in any order, each conversation through its turns by itself."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.sources import Conversation, iter_conversations
from eaglepipe.chat.tokenizer import ChatTokenizer
from eaglepipe.errors import ConfigError
from eaglepipe.generation.answer_log import Row
from eaglepipe.generation.answering import Sampling
from eaglepipe.generation.endpoint.answerer import EndpointAnswerer, Persistence
from eaglepipe.generation.endpoint.checks import Checker
from eaglepipe.generation.endpoint.dialects import CHAT, Speech
from eaglepipe.generation.endpoint.numbered_log import NumberedLog
from eaglepipe.generation.endpoint.pool import Pool, Server
from eaglepipe.generation.endpoint.transport import Transport, unreachable
from eaglepipe.generation.rewrite import Rewriter, Rewritten
from eaglepipe.progress import ProgressLine
from eaglepipe.recipe.generation import RegenerateConfig
from eaglepipe.recipe.tree import Recipe
from eaglepipe.signals import stop_on_signals

_SHOWN_REASONS = 4


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How input rows become rows of the log."""

    faulty: Callable[[FaultyRow], Row]
    of: Callable[[Conversation, Rewritten], Row]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of the target: its vocabulary, the tokens that it reads at once, and those that end its answers."""

    vocab_size: int
    max_positions: int | None
    stop_ids: frozenset[int]


def answer_by_endpoint(
    recipe: Recipe,
    chat: ChatTokenizer,
    log: NumberedLog,
    *,
    limits: Limits,
    num_rows: int,
    outcomes: Outcomes,
    report: Callable[[str], None],
) -> None:
    """Give every input row that the log lacks its outcome.

    Raises:
        ConfigError: no key, or a server that does not serve the target.
        UnreachableError: no server answers, or some rows got no answer; all others are in the log.
        StoppedError: a signal came; every answer so far is in the log.
    """
    settings = recipe.regenerate
    assert settings is not None and settings.endpoint is not None
    saved = f"the conversations answered so far are in {log.path}"
    failed: dict[int, Row] = {}
    if log.numbers:
        report(f"continuing after {len(log.numbers):,} of {num_rows:,} conversations")
    with stop_on_signals() as stop:
        speech = Speech(
            chat=chat,
            sampling=Sampling(**settings.model_dump(include={"max_new_tokens", "temperature", "top_p"})),
            stop_ids=limits.stop_ids,
            vocab_size=limits.vocab_size,
            request=settings.request,
        )
        checker = Checker(transport=_transport(settings), speech=speech, path=recipe.target.path, model=settings.model)
        pool = Pool([Server(url=entry.url, weight=entry.weight) for entry in settings.endpoint])
        persistence = Persistence(
            retries=settings.retries, backoff_s=settings.backoff_s, failed_in_a_row=max(settings.concurrency, 8)
        )
        with EndpointAnswerer(pool, checker, persistence, stop, saved) as answerer:
            answerer.check()
            _report_servers(pool, report)
            lengths = [length for length in (limits.max_positions, answerer.max_length) if length is not None]
            rewriter = Rewriter(
                answerer=answerer,
                chat=chat,
                max_new_tokens=settings.max_new_tokens,
                vocab_size=limits.vocab_size,
                max_positions=min(lengths, default=None),
                seed=settings.seed,
                keep_unfinished=settings.keep_unfinished,
            )
            _answer(rewriter, settings, log, num_rows=num_rows, outcomes=outcomes, failed=failed)
    _settle(failed, log, settings, num_rows)


def _answer(
    rewriter: Rewriter,
    settings: RegenerateConfig,
    log: NumberedLog,
    *,
    num_rows: int,
    outcomes: Outcomes,
    failed: dict[int, Row],
) -> None:
    conversations: dict[int, Conversation] = {}

    def waiting() -> Iterator[tuple[int, Conversation]]:
        for number, row in enumerate(iter_conversations(settings.sources)):
            if number in log.numbers:
                continue
            if isinstance(row, FaultyRow):
                log.put(number, outcomes.faulty(row))
                progress.update(1)
            else:
                conversations[number] = row
                yield number, row

    started, num_tokens, done = time.monotonic(), 0, len(log.numbers)
    with ProgressLine("regenerate", total=num_rows, unit="conversations", initial=done) as progress:
        try:
            for number, rewritten in rewriter.rewrite(waiting(), at_once=settings.concurrency):
                row = outcomes.of(conversations.pop(number), rewritten)
                if rewritten.figures:
                    row["figures"] = dict(rewritten.figures)
                if rewritten.passing:
                    failed[number] = row
                else:
                    log.put(number, row)
                num_tokens += rewritten.num_tokens
                rate = num_tokens / (time.monotonic() - started)
                progress.update(1, f"{rate:,.0f} tok/s" + (f" · {len(failed):,} failed" if failed else ""))
        finally:
            log.flush()


def _settle(failed: dict[int, Row], log: NumberedLog, settings: RegenerateConfig, num_rows: int) -> None:
    """Leave out the rows whose requests failed, if they are few enough.

    Raises:
        UnreachableError: they are more, and stay to be answered by another run.
    """
    if len(failed) > settings.max_failed_fraction * num_rows:
        tally = log.tally
        details = [str(row["detail"]) for row in failed.values()]
        reasons = "; ".join(
            f"{details.count(text):,} by {text}" for text in list(dict.fromkeys(details))[:_SHOWN_REASONS]
        )
        raise unreachable(
            f"{len(failed):,} of {num_rows:,} conversations got no answer ({reasons}). "
            f"{tally.written:,} success + {tally.errors.total() + len(failed):,} errors + "
            f"{tally.skipped.total():,} skipped = {num_rows:,} input; all but the failed ones are in {log.path}. "
            "To go on without them, raise regenerate.max_failed_fraction"
        )
    for number, row in failed.items():
        log.put(number, row)
    log.flush()


def figures_of(rows: Iterator[Row]) -> dict[str, int]:
    """Return the figures of all rows of a log, added up."""
    total: dict[str, int] = {}
    for row in rows:
        for name, count in row.get("figures", {}).items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def warnings_of(figures: Mapping[str, int]) -> list[str]:
    """Return what a user should know about answers that came without their token ids."""
    lines = []
    if tokenised := figures.get("tokenised", 0):
        differ, unknown = figures.get("of_other_length", 0), figures.get("of_unknown_length", 0)
        judged = tokenised - unknown
        share = f"{differ / judged:.1%} of them tokenise differently from what was sampled" if judged else ""
        told = f"the endpoint does not tell the lengths of {unknown:,}" if unknown else ""
        lines.append(
            f"  warning: the endpoint returned {tokenised:,} answers without their token ids, so their text was "
            f"tokenised here: {'; '.join(text for text in (share, told) if text)}"
        )
    if other := figures.get("other_prompt", 0):
        lines.append(f"  warning: the endpoint's own template rendered {other:,} prompts otherwise than the recipe's")
    return lines


def _transport(settings: RegenerateConfig) -> Transport:
    variable, key = settings.api_key_env, None
    if variable is not None:
        key = os.environ.get(variable, "").strip()
        if not key:
            raise ConfigError(f"regenerate.api_key_env: the environment variable {variable} is not set, or is empty")
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"regenerate.api_key_env: the key in {variable} has characters that no key has")
    return Transport(key=key, connections=settings.concurrency, timeout_s=settings.timeout_s, key_source=variable or "")


def _report_servers(pool: Pool, report: Callable[[str], None]) -> None:
    for server in pool.servers:
        if server.dialect is None:
            report(f"endpoint  {server.url}: does not answer yet")
            continue
        how = {"tokens": "token ids both ways", "text": "prompts as token ids, answers as text"}.get(
            server.dialect, "chat completions" + ("" if server.dialect == CHAT else " with token ids")
        )
        report(f"endpoint  {server.url}: {server.model}, {how}")


def log_of(path: Path, identity: Mapping[str, Any]) -> NumberedLog:
    """Open or continue the log of a run by endpoints."""
    return NumberedLog(path, identity, setting="regenerate.output")
