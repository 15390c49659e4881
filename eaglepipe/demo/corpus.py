"""The demo's real data: chat rows over facts that this Python computes, written as JSONL files, one a source.

Entities are dealt out once, to the training files or to the held-back prompts, so that no held-back question was ever
seen in training. Same Python, same seed: same bytes.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from eaglepipe.demo import corpus_calendar, corpus_unicode
from eaglepipe.demo.corpus_types import Exchange, Source

SOURCE_SHARES: tuple[tuple[Source, float], ...] = ((corpus_unicode.SOURCE, 0.55), (corpus_calendar.SOURCE, 0.45))
BRIEF = "Answer in one sentence."
_TURNS_CUMULATIVE = (0.78, 0.94, 1.0)
_SYSTEM_SHARE, _BRIEF_SHARE = 0.5, 0.12

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CorpusFiles:
    """One JSONL file a source in each of `train` and `prompts`; rows are {id, source, messages}.

    The assistant turns of `prompts` are the true answers; the demo has the target replace them by its own.
    """

    train: tuple[Path, ...]
    prompts: tuple[Path, ...]
    num_train_rows: int
    num_prompt_rows: int


def write_corpus(folder: Path, *, seed: int, train_rows: int = 12_000, prompt_rows: int = 9_000) -> CorpusFiles:
    """Write `folder/train/<source>.jsonl` and `folder/prompts/<source>.jsonl`.

    The counts are what is aimed at: a source with fewer entities than its share gives what it has, two to one.
    """
    dealt = [_deal(source, share, train_rows, prompt_rows, seed) for source, share in SOURCE_SHARES]
    train, prompts = [first for first, _ in dealt], [second for _, second in dealt]
    return CorpusFiles(
        train=_write(folder / "train", train),
        prompts=_write(folder / "prompts", prompts),
        num_train_rows=sum(map(len, train)),
        num_prompt_rows=sum(map(len, prompts)),
    )


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows of the files that `write_corpus` wrote, in order."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def questions(rows: Iterable[Row]) -> list[str]:
    """Every user turn."""
    return [message["content"] for row in rows for message in row["messages"] if message["role"] == "user"]


def _deal(source: Source, share: float, train_rows: int, prompt_rows: int, seed: int) -> tuple[list[Row], list[Row]]:
    keys = source.keys()
    Random(f"{seed}/{source.name}").shuffle(keys)
    num_prompts = min(round(share * prompt_rows), len(keys) // 3)
    num_train = round(share * train_rows)
    train = [_row(source, key, seed) for key in keys[num_prompts : num_prompts + num_train]]
    seen = set(questions(train))
    prompts = (_row(source, key, seed) for key in keys[:num_prompts])
    return train, [row for row in prompts if seen.isdisjoint(questions([row]))]


def _row(source: Source, key: str, seed: int) -> Row:
    rng = Random(f"{seed}/{source.name}/{key}")
    exchanges = list(source.exchanges(key, rng))
    rng.shuffle(exchanges)
    draw = rng.random()
    num_turns = 1 + sum(draw >= bound for bound in _TURNS_CUMULATIVE)
    has_system, brief = rng.random() < _SYSTEM_SHARE, rng.random() < _BRIEF_SHARE
    system = f"{source.system_prompt} {BRIEF}" if brief else source.system_prompt if has_system else None
    return {
        "id": f"{source.name}-{key}",
        "source": source.name,
        "messages": _messages(exchanges[:num_turns], system=system, brief=brief),
    }


def _messages(exchanges: Sequence[Exchange], *, system: str | None, brief: bool) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        sentences = exchange.sentences[:1] if brief else exchange.sentences
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": " ".join(sentences)})
    return messages


def _write(folder: Path, rows_by_source: Sequence[list[Row]]) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for rows, (source, _) in zip(rows_by_source, SOURCE_SHARES, strict=True):
        path = folder / f"{source.name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        paths.append(path)
    return tuple(paths)
